"""The threads that torch computes with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samkv_rag.model import openmp

TESTS = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(openmp._libgomp() is None, reason="torch computes with another library than libgomp"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc"),
]

COUNTING = """
import os, sys, threading, time
import torch
from samkv_rag.model.openmp import compute_alone, release_team

def compute():
    torch.randn(1000, 1000).exp_()

def num_threads():
    time.sleep(0.2)  # ended ones need a moment
    return len(os.listdir("/proc/self/task"))

alone = num_threads()
compute()
"""


def run(program: str) -> str:
    """Run a program in a process of its own, with two threads a team, and return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", COUNTING + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_released_team_is_gone_until_the_next_operation() -> None:
    program = """
with_team = num_threads()
release_team()
released = num_threads()
compute()
print(with_team - alone, released - alone, num_threads() - alone)
"""
    assert run(program) == "1 0 1"


def test_a_thread_that_computes_alone_has_no_team_and_others_keep_theirs() -> None:
    program = """
release_team()

def run_alone():
    compute_alone()
    compute()
    print(torch.get_num_threads(), num_threads() - alone)

thread = threading.Thread(target=run_alone)
thread.start()
thread.join()
print(torch.get_num_threads())
"""
    assert run(program).split() == ["1", "1", "2"]


def test_a_process_forked_by_a_thread_with_a_team_computes() -> None:
    program = """
from samkv_rag import SamKVEngine
from support import tiny

engine = SamKVEngine.from_pretrained(tiny.model(), tokenizer=tiny.tokenizer())
expected = engine.generate("What is it?", max_new_tokens=3).token_ids
compute()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
compute()
os._exit(0 if engine.generate("What is it?", max_new_tokens=3).token_ids == expected else 3)
"""
    run(program)

"""What several stores are made of.

options.py         values given by users, checked
hashes.py          keys and fingerprints, checked
private_files.py   files of one owner, written whole or not at all
background.py      a bounded pool of threads that keeps no process from ending
ledger.py          what a store holds, in the order in which it came
whole.py           stores that hand a chunk over whole
reachability.py    places that do not answer: one failure is waited for
"""

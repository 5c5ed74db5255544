"""Many requests on one model: sequences, a scheduler, one worker thread, streams of pieces.

sequence.py    a request on its way to an answer
prefilling.py  reads a prompt and prefills it
refreshing.py  updates what a long answer retains
step.py        decodes one token of every running sequence, in one batch
result.py      turns a finished sequence into a result with metrics
scheduler.py   decides which sequence goes next
worker.py      the thread that owns the model
stream.py      pieces of an answer, for readers in threads and in event loops
sampling.py    chooses tokens, and turns them into text
guiding.py     limits tokens to those that a grammar allows
"""

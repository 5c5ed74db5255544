"""Many requests on one model: sequences, a scheduler, one worker thread, streams of pieces.

sequence.py    a request on its way to an answer
prefilling.py  a prompt read and prefilled
refreshing.py  what is retained follows a long answer
step.py        one token for every running sequence, in one batch
result.py      a finished sequence as a result with metrics
scheduler.py   who waits, who runs, who goes first
worker.py      the thread that owns the model
stream.py      pieces of an answer, for readers in threads and in event loops
sampling.py    token choice; token ids to text
guiding.py     which tokens a grammar allows
"""

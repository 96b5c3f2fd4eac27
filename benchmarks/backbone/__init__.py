"""Our backbone engine beside transformers' `generate()` and the device's roofline, on random weights of any size.

models.py      a Llama of a preset's size, made on the device in a precision
roofline.py    what the device can do, measured; the least time that a pass could take on it
contenders.py  who is timed: generate() eager and static, our engine with drafts, and with several robots
figures.py     samples to rows of the table, and to the sentences on what was reached
rounds.py      interleaved rounds, bounded in time
session.py     one precision from the model to its rows
__main__.py    python -m benchmarks.backbone
"""

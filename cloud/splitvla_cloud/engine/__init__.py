"""The language half at work: several robots' frames in, greedy action tokens out, one forward pass at a time.

interface.py     what a worker asks of any engine; knows no torch
answer.py        one answer as it grows: what to feed next, what to keep of a draft; pure
llama.py         Llama's forward pass over rectangles of rows, on the weights that transformers loaded
linear.py        projections: fused where that is exact, as they are where they are quantised
compiled.py      small operations as one kernel
fp8.py           linear layers in 8-bit floats, activations too
int4.py          the same with weights that lie in memory in 4 bits
host_memory.py   what a pass on the CPU frees stays with the process
kv_cache.py      keys and values of every robot, allocated once
cuda.py          captures passes as CUDA graphs; what torch may not trade away on a GPU
runner.py        runs a pass: directly, or as a captured CUDA graph where the shape has one
torch_engine.py  our engine: slots, passes, faults
vllm_engine.py   vLLM behind the same interface
warm_up.py       the passes before the first robot's, and what they cost
"""

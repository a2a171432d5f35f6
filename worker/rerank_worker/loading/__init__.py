"""From a model source to something that scores: find the files, verify them, read their settings, load.

No step runs code that came with a model, and none reads a weight file that is not safetensors.
"""

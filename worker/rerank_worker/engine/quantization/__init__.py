"""Reduced precision: int8 on the CPU and float8 on Hopper for the flat engine, and the quality floor for every engine.

Nothing here changes what a pair's score depends on: a row of activations is quantized by constants and by itself.
"""

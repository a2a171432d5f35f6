"""The flat engine: the tokens of all pairs of a batch in one matrix, nothing padded but within attention.

Linear layers, norms and activations do not care where one pair ends and the next begins; only attention does.
"""

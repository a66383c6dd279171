"""The rules by which tokens are chosen, for every engine that chooses any.

They need numpy alone: the client's decoding loop imports them from here, and the
models' own ``generate`` and the exported graphs follow them.
"""

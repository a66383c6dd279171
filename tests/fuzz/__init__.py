"""Hostile input by the thousand: our refusal or a right reading, never anything else.

``make fuzz`` counts what was tried. A failure prints the number of its case, which
``OPTSERVE_FUZZ_SEED`` and that number make again.
"""

"""Greedy text from a TFLite export: ai-edge-litert, numpy, tokenizers and no more."""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from tokenizers import Tokenizer

EOS = 2  # `eos_token_id` of config.json


def main(folder: str, prompt: str, new_tokens: int = 40, threads: int = 2) -> None:
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    model = Interpreter(str(Path(folder) / "model.tflite"), num_threads=threads)
    model.allocate_tensors()  # of `decode`, the primary signature
    S = max(int(name[8:]) for name in model.get_signature_list() if name != "decode")
    runner = model.get_signature_runner("decode")
    inputs = {
        k: model.tensor(d["index"]) for k, d in runner.get_input_details().items()
    }
    outputs = {k: d["index"] for k, d in runner.get_output_details().items()}
    del runner  # the interpreter does not run while it is held
    caches = [name for name in inputs if name.startswith(("key_", "value_"))]
    for name in caches:  # masked slots must not hold NaN
        inputs[name]()[:] = 0

    def append(rows: np.ndarray, slot: int) -> None:
        """Rows [n, L, 2, H, D] into the tensors [1, H, C, D]."""
        for name in caches:
            kind, layer = name.split("_")
            new = rows[:, int(layer), int(kind == "value")].swapaxes(0, 1)
            inputs[name]()[0, :, slot : slot + len(rows)] = new

    ids = tokenizer.encode(prompt).ids
    for start in range(0, len(ids), S):  # the prompt, S tokens at a time
        part = ids[start : start + S]
        feed = {name: inputs[name]() for name in caches}
        feed["input_ids"] = np.array([part + [0] * (S - len(part))], np.int32)
        lengths = np.array([[len(part)], [start]], np.int32)
        feed["input_length"], feed["cache_length"] = lengths
        results = model.get_signature_runner(f"prefill_{S}")(**feed)
        del feed
        append(results["new_cache"][0, : len(part)], start)
    logits = results["logits"]
    for slot in range(len(ids), min(len(ids) + new_tokens, inputs["key_0"]().shape[2])):
        ids.append(int(logits[0].argmax()))
        if ids[-1] == EOS:
            break
        inputs["input_ids"]()[:], inputs["cache_length"]()[:] = ids[-1], slot
        model.invoke()
        append(model.get_tensor(outputs["new_cache"])[0], slot)
        logits = model.get_tensor(outputs["logits"])
    print(tokenizer.decode(ids))


if __name__ == "__main__":  # litert_minimal.py OUT/1 "Good morrow" 40
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))

"""Greedy text with TensorFlow Serving's own stub: what any language can do.

Nothing of this project is imported but the contract's names: ``prefill`` once, then
``decode`` with the cache that the replies gave, one row at a time.

python official_stub.py 127.0.0.1:8500 2,713,16 20
"""

import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def main(target: str, ids: str, new_tokens: str) -> None:
    """Print the ids that follow ``ids``."""
    with grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def predict(signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "opt"
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            outputs = stub.Predict(request, timeout=60).outputs
            return {name: tf.make_ndarray(value) for name, value in outputs.items()}

        prompt = [int(part) for part in ids.split(",")]
        reply = predict(
            "prefill",
            input_ids=np.array([prompt], np.int32),
            input_length=np.array([len(prompt)], np.int32),
        )
        cache, tokens = reply["new_cache"][:, : len(prompt)], []
        while True:
            tokens.append(int(reply["logits"][0].argmax()))
            if len(tokens) == int(new_tokens):
                break
            reply = predict(
                "decode",
                input_ids=np.array([tokens[-1:]], np.int32),
                input_length=np.array([1], np.int32),
                cache=cache,
                cache_length=np.array([cache.shape[1]], np.int32),
            )
            cache = np.concatenate([cache, reply["new_cache"][:, :1]], axis=1)
    print(",".join(map(str, tokens)))


if __name__ == "__main__":
    main(*sys.argv[1:])

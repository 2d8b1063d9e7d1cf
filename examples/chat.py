"""The whole loop on one page: talk, rate, learn, talk again, go back.

    cargo build --release
    APA_LIB_DIR=target/release PYTHONPATH=bindings/python python3 examples/chat.py MODEL.gguf DATA_DIR
"""

import sys

import libapa

ANSWERS = 16
WANTED = 80


def talk(engine: libapa.Engine) -> libapa.Result:
    """Prints an answer as it comes."""
    stream = engine.generate(messages=[{"role": "user", "content": "Name a colour."}], max_tokens=64)
    for text in stream:
        print(text, end="", flush=True)
    print()
    return stream.result()


def run(model: str, data: str) -> None:
    # This program says when to train; by default the engine does so by itself.
    with libapa.Engine(model, data, settings={"train.auto": False}) as engine:
        for _ in range(ANSWERS):
            answer = talk(engine)
            # Likes answers of about WANTED letters: 1 at that length, falling towards -1.
            off = abs(len(answer["text"]) - WANTED)
            engine.feedback(answer["id"], rating=2 * WANTED / (WANTED + off) - 1)
        step = engine.train_step()
        if step["outcome"] != "published":
            raise SystemExit(f"the step published no version: {step['reason']}")
        metrics = step["metrics"]
        print(f"training: {metrics['samples']} answers, mean rating {metrics['mean_reward']:.3f}")
        after = talk(engine)
        print(f"answered by version {after['policy_version']}, back to {engine.rollback()}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: chat.py MODEL.gguf DATA_DIR")
    try:
        run(sys.argv[1], sys.argv[2])
    except libapa.ApaError as error:
        raise SystemExit(str(error)) from None

"""Each schema of tests/schemas, asked of a running service: schemas_python.py URL FOLDER [SEEDS]. Either it is refused with the
keyword named, or what is answered at a high temperature parses and validates by the jsonschema package. Prints ok at the end."""

import concurrent.futures
import glob
import json
import sys
import urllib.error
import urllib.request

import jsonschema

URL, FOLDER = sys.argv[1].rstrip("/"), sys.argv[2]
SEEDS = int(sys.argv[3]) if len(sys.argv) > 3 else 2


def ask(schema, seed):
    body = {
        "messages": [{"role": "user", "content": "Write JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "temperature": 1.5,
        "seed": seed,
        "max_tokens": 200,
    }
    head = {"content-type": "application/json"}
    request = urllib.request.Request(URL + "/v1/chat/completions", json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            choice = json.load(answer)["choices"][0]
            return 200, choice["finish_reason"], choice["message"]["content"]
    except urllib.error.HTTPError as error:
        return error.code, None, json.load(error)["error"]["message"]


def check(case):
    """Answers that were whole, and what was wrong."""
    name, schema = case["description"], case["schema"]
    if "refused" in case:
        status, _, message = ask(schema, 1)
        good = status == 400 and case["refused"] in message
        return 0, [] if good else [f"{name}: {status} {message!r}, expected a 400 that names {case['refused']}"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    whole, wrong = 0, []
    for seed in range(SEEDS):
        status, finish, text = ask(schema, seed)
        if status != 200:
            wrong.append(f"{name}: {status} {text!r}")
        elif finish == "stop":
            whole += 1
            try:
                wrong += [f"{name}: {text!r}: {error.message}" for error in validator.iter_errors(json.loads(text))]
            except ValueError as error:
                wrong.append(f"{name}: {text!r}: {error}")
    return whole, wrong


def main():
    cases = [case for file in sorted(glob.glob(FOLDER + "/*.json")) for case in json.load(open(file, encoding="utf-8"))]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(check, cases))
    wrong = [line for _, lines in results for line in lines]
    whole = sum(count for count, _ in results)
    asked = sum(SEEDS for case in cases if "refused" not in case)
    print(f"{len(cases)} schemas, {asked} answers, {whole} of them whole, {len(wrong)} wrong")
    # Few are cut off, or nothing was tried.
    assert not wrong, "\n".join(wrong)
    assert whole * 2 > asked, "most answers were cut off"
    print("ok")


main()

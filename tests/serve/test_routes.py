"""Every route answers what the model itself says, and refuses what it does not take."""

import base64

import httpx2
import numpy as np
import pytest

from flaxbert.retrieval import rerank

TEXTS = ["a fine film .", "bad", "the film was bad bad ."]
TOLERANCE = 1e-5
"""Other batches are other programs, whose sums are rounded otherwise."""


def post(serving, path, body, status=200, **options):
    answer = httpx2.post(f"{serving.url}{path}", json=body, timeout=60, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), atol=TOLERANCE)


def test_vectors_are_those_of_the_model(serving):
    model = serving.models["vectors"]
    close(post(serving, "/embed", {"inputs": TEXTS}), model.encode(TEXTS))
    close(post(serving, "/embed", {"inputs": TEXTS[0]}), model.encode(TEXTS[:1]))
    close(post(serving, "/embed", {"inputs": TEXTS, "normalize": False}), model.encode(TEXTS, normalize=False))
    close(post(serving, "/models/vectors/embed", {"inputs": TEXTS}), model.encode(TEXTS))
    close(post(serving, "/embed", {"inputs": TEXTS, "prompt_name": "query"}), model.encode(TEXTS, prompt_name="query"))
    ids = model.tokenizer(TEXTS[0])["input_ids"]
    close(post(serving, "/embed", {"inputs": [ids, TEXTS[1]][:1]}), model.encode(TEXTS[:1]))
    close(post(serving, "/embed", {"inputs": ids}), model.encode(TEXTS[:1]))


def test_fewer_dimensions_are_the_first_ones_at_length_one(serving):
    full = serving.models["vectors"].encode(TEXTS, normalize=False)[:, :5]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    close(post(serving, "/embed", {"inputs": TEXTS, "dimensions": 5}), expected)
    assert "12" in post(serving, "/embed", {"inputs": TEXTS, "dimensions": 13}, 422)["error"]


def test_vectors_of_tokens(serving):
    model = serving.models["vectors"]
    answer = post(serving, "/embed_all", {"inputs": TEXTS})
    for text, rows in zip(TEXTS, answer, strict=True):
        ids = model.tokenizer(text)["input_ids"]
        close(rows, model.apply(model.params, {"input_ids": [ids]}).last_hidden_state[0])


def test_similarities_are_cosines(serving):
    vectors = serving.models["vectors"].encode(TEXTS)
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    close(post(serving, "/similarity", body), vectors[1:] @ vectors[0])


def test_labels_are_those_of_the_model_best_first(serving):
    model = serving.models["film"]
    answer = post(serving, "/models/film/predict", {"inputs": [[text] for text in TEXTS]})
    for row, prediction in zip(answer, model.predict(TEXTS), strict=True):
        assert [entry["label"] for entry in row] == sorted(prediction.scores, key=lambda n: -prediction.scores[n])
        close([entry["score"] for entry in row], sorted(prediction.scores.values(), reverse=True))
    (pair,) = model.predict([(TEXTS[0], TEXTS[1])])
    assert post(serving, "/predict", {"inputs": [TEXTS[0], TEXTS[1]]})[0]["score"] == pytest.approx(
        pair.score, abs=1e-5
    )
    raw = post(serving, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    close([entry["score"] for entry in raw], sorted(model.predict_logits(TEXTS[:1])[0], reverse=True))


def test_plain_inputs_become_predictions(serving):
    expected = [p.label for p in serving.models["film"].predict(TEXTS)]
    for path, key in (
        ("/v1/models/film:predict", "instances"),
        ("/v1/models/film:predict", "inputs"),
        ("/models/film/vertex", "instances"),
    ):
        answer = post(serving, path, {key: TEXTS})["predictions"]
        assert [row[0]["label"] for row in answer] == expected


def test_texts_are_ranked_as_by_the_library(serving):
    expected = rerank(serving.models["ranker"], "fine film", TEXTS)
    answer = post(serving, "/rerank", {"query": "fine film", "texts": TEXTS, "return_text": True})
    assert [(entry["index"], entry["text"]) for entry in answer] == [(entry.index, entry.text) for entry in expected]
    close([entry["score"] for entry in answer], [entry.score for entry in expected])


def test_entities_are_those_of_the_model(serving):
    tagged = serving.models["tagger"].predict(TEXTS)
    answer = post(serving, "/ner", {"inputs": TEXTS})
    assert sum(map(len, answer)) > 0
    for row, text in zip(answer, tagged, strict=True):
        assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in row] == [
            (e.label, e.text, e.start, e.end) for e in text.entities
        ]
        close([e["score"] for e in row], [e.score for e in text.entities])


def test_answers_are_those_of_the_model(serving):
    question, context = "was the film bad", "the film was fine . a bad film was the fine . " * 4  # several windows
    (expected,) = serving.models["reader"].predict([question], [context], max_length=32)
    body = {"inputs": {"question": question, "context": context}}
    answer = post(serving, "/qa", body)
    assert answer["answer"] == expected.text
    assert answer["score"] == pytest.approx(expected.score, abs=1e-5)
    several = post(serving, "/qa", {**body, "parameters": {"top_k": 3, "handle_impossible_answer": False}})
    close([entry["score"] for entry in several], [entry.score for entry in expected.candidates[:3]])


def test_masks_are_filled_with_the_likeliest_words(serving):
    model = serving.models["words"]
    text = "[MASK] film was [MASK] . [MASK] [MASK] [MASK] ."  # more than a row has places for
    logits = model.predict_logits([text])[0]
    ids = model.tokenizer(text)["input_ids"]
    places = [place for place, number in enumerate(ids) if number == model.tokenizer.mask_token_id]
    answer = post(serving, "/fill-mask", {"inputs": text, "parameters": {"top_k": 3}})
    assert len(answer) == len(places) == 5
    for row, place in zip(answer, places, strict=True):
        shares = np.exp(logits[place] - logits[place].max())
        shares /= shares.sum()
        assert [entry["token"] for entry in row] == np.argsort(-shares)[:3].tolist()
        close([entry["score"] for entry in row], np.sort(shares)[::-1][:3])
    one = post(serving, "/fill-mask", {"inputs": "a [MASK] film", "parameters": {"targets": ["bad", "fine"]}})
    assert {entry["token_str"] for entry in one} == {"bad", "fine"}
    assert one[0]["sequence"] in ("a bad film", "a fine film")
    assert "[MASK]" in post(serving, "/fill-mask", {"inputs": "a film"}, 422)["error"]


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_never_seen_are_judged_by_entailment(serving, multi_label):
    labels = ["fine", "bad"]
    parameters = {"candidate_labels": labels, "multi_label": multi_label, "hypothesis_template": "the film was {} ."}
    answer = post(serving, "/zero-shot", {"inputs": TEXTS[0], "parameters": parameters})
    logits = serving.models["nli"].predict_logits([(TEXTS[0], f"the film was {label} .") for label in labels])
    logits = np.asarray(logits, np.float64)
    if multi_label:
        expected = 1 / (1 + np.exp(logits[:, 2] - logits[:, 0]))
    else:
        expected = np.exp(logits[:, 0]) / np.exp(logits[:, 0]).sum()
    assert [entry["label"] for entry in answer] == [labels[place] for place in np.argsort(-expected)]
    close([entry["score"] for entry in answer], np.sort(expected)[::-1])


def test_labels_never_seen_are_judged_by_filling_a_mask(serving):
    labels, text = ["fine", "bad", "film film"], "a film ."
    body = {"inputs": text, "parameters": {"candidate_labels": labels, "hypothesis_template": "the film was {} ."}}
    answer = post(serving, "/models/words/zero-shot", body)
    model, scores = serving.models["words"], []
    for label in labels:
        numbers = model.tokenizer(label, add_special_tokens=False)["input_ids"]
        filled = f"{text} the film was {' '.join(['[MASK]'] * len(numbers))} ."
        places = np.flatnonzero(np.asarray(model.tokenizer(filled)["input_ids"]) == model.tokenizer.mask_token_id)
        logits = np.asarray(model.predict_logits([filled])[0], np.float64)[places]
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        scores.append(np.mean([logs[slot, number] for slot, number in enumerate(numbers)]))
    expected = np.exp(scores) / np.exp(scores).sum()
    assert [entry["label"] for entry in answer] == [labels[place] for place in np.argsort(-expected)]
    close([entry["score"] for entry in answer], np.sort(expected)[::-1])


def test_tokens_have_their_places_and_come_back_as_text(serving):
    (tokens,) = post(serving, "/tokenize", {"inputs": TEXTS[0]})
    assert [token["special"] for token in tokens] == [True, False, False, False, False, True]
    assert [TEXTS[0][t["start"] : t["stop"]] for t in tokens[1:-1]] == [t["text"] for t in tokens[1:-1]]
    ids = [token["id"] for token in tokens]
    assert post(serving, "/decode", {"ids": ids}) == ["a fine film."]
    assert post(serving, "/decode", {"ids": [ids, ids], "skip_special_tokens": False})[0].startswith("[CLS]")
    assert len(post(serving, "/tokenize", {"inputs": TEXTS, "add_special_tokens": False})[1]) == 1


def test_openai_gives_floats_and_base64(serving):
    expected = serving.models["vectors"].encode(TEXTS)
    answer = post(serving, "/v1/embeddings", {"input": TEXTS, "model": "vectors"})
    close([entry["embedding"] for entry in answer["data"]], expected)
    assert answer["usage"]["prompt_tokens"] == sum(
        len(serving.models["vectors"].tokenizer(t)["input_ids"]) for t in TEXTS
    )
    packed = post(
        serving, "/v1/embeddings", {"input": TEXTS[0], "model": "text-embedding-3", "encoding_format": "base64"}
    )
    close(np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4"), expected[0])
    assert "vectors" in [entry["id"] for entry in httpx2.get(f"{serving.url}/v1/models").json()["data"]]


REFUSED = [
    ("/embed", {"inputs": []}, 400, "no input"),
    ("/embed", {"inputs": ""}, 422, "empty"),
    ("/embed", {"inputs": ["a", ""]}, 422, "Input 1 is empty"),
    ("/embed", {"inputs": ["a"] * 33}, 413, "33 inputs"),
    ("/embed", {"inputs": "film " * 40}, 422, "32 tokens"),
    ("/embed", {"inputs": [[99]]}, 422, "0 to 30"),
    ("/embed", {"inputs": [[]]}, 422, "empty"),
    ("/embed", {"inputs": {"a": 1}}, 422, "inputs"),
    ("/embed", {"inputs": "a", "prompt_name": "quer"}, 422, "query"),
    ("/embed", {}, 422, "inputs"),
    ("/embed_sparse", {"inputs": "a"}, 424, "weights of words"),
    ("/models/film/embed", {"inputs": "a"}, 424, "sequence-classification"),
    ("/models/vectors/predict", {"inputs": "a"}, 424, "labels no texts"),
    ("/models/films/predict", {"inputs": "a"}, 404, "'film'"),
    ("/predict", {"inputs": ["a", ["b"]]}, 422, "pair"),
    ("/predict", {"inputs": [["a"], ["a", "b"]]}, 422, "all"),
    ("/rerank", {"query": "a", "texts": []}, 400, "no input"),
    ("/models/film/rerank", {"query": "a", "texts": ["b"]}, 424, "cross-encoder"),
    ("/zero-shot", {"inputs": "a", "parameters": {"candidate_labels": ["x", "x"]}}, 422, "different"),
    ("/zero-shot", {"inputs": "a", "parameters": {"candidate_labels": ["x"], "hypothesis_template": "no"}}, 422, "{}"),
    ("/models/film/zero-shot", {"inputs": "a", "parameters": {"candidate_labels": ["x"]}}, 424, "entailment"),
    ("/fill-mask", {"inputs": "a [MASK]", "parameters": {"top_k": 99}}, 422, "1 to 31"),
    ("/qa", {"inputs": {"question": " ", "context": "a"}}, 422, "empty"),
    ("/decode", {"ids": [31]}, 422, "0 to 30"),
    ("/models/film", {"inputs": {"a": 1}}, 422, "inputs"),
    ("/vertex", {}, 422, "neither"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), REFUSED)
def test_what_a_route_does_not_take_is_said(serving, path, body, status, words):
    answer = post(serving, path, body, status)
    assert words in answer["error"]
    assert answer["error_type"]


def test_long_texts_are_cut_where_the_client_says_so(serving):
    model, text = serving.models["vectors"], "bad " + "film " * 40
    expected = model.encode(["bad " + "film " * 29])
    close(post(serving, "/embed", {"inputs": text, "truncate": True}), expected)
    left = post(serving, "/embed", {"inputs": text, "truncate": True, "truncation_direction": "left"})
    close(left, model.encode(["film " * 30]))
    close(post(serving, "/embed", {"inputs": text, "truncate": True}), expected)  # nothing was left behind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"inputs": NaN}',
        b'{"inputs": "\\ud800"}',
        b"\xff\xfe",
        b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(serving, content):
    answer = httpx2.post(f"{serving.url}/embed", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]


def test_the_server_says_what_it_serves(serving):
    info = httpx2.get(f"{serving.url}/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (32, 32)
    film = httpx2.get(f"{serving.url}/models/film/info").json()
    assert film["model_type"]["classifier"]["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    listed = httpx2.get(f"{serving.url}/models").json()["models"]
    assert [entry["name"] for entry in listed] == list(serving.models)
    for path in ("/health", "/health/live", "/health/ready", "/ping", "/docs", "/openapi.json"):
        assert httpx2.get(f"{serving.url}{path}").status_code == 200
    assert httpx2.get(f"{serving.url}/nothing").json()["error_type"] == "Not found"


def test_answers_carry_times_and_ids(serving):
    answer = httpx2.post(f"{serving.url}/embed", json={"inputs": TEXTS[0]}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-compute-tokens"] == "6"
    assert answer.headers["x-compute-characters"] == str(len(TEXTS[0]))
    other = httpx2.post(f"{serving.url}/embed", json={"inputs": TEXTS[0]}, headers={"x-request-id": "no\tid {}"})
    assert len(other.headers["x-request-id"]) == 32


def read_metrics(serving):
    lines = httpx2.get(f"{serving.url}/metrics").text.splitlines()
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if not line.startswith("#")}


def test_metrics_have_the_names_of_tei(serving):
    post(serving, "/embed", {"inputs": TEXTS})
    post(serving, "/embed", {"inputs": []}, 400)
    values = read_metrics(serving)
    assert values["te_request_count"] >= values["te_request_success"] > 0
    assert values["te_queue_size"] == 0
    assert values["te_request_duration_count"] > 0
    assert values["te_batch_next_size_count"] > 0
    assert values['flaxbert_model_version{model="film",role="champion"}'] == 1


def test_no_request_waits_for_a_compiler(serving):
    before = read_metrics(serving)["flaxbert_compilations"]  # tests compile in the same process
    for count in range(1, 8):
        for words in (1, 9, 20, 28):
            texts = ["film " * words] * count
            post(serving, "/embed", {"inputs": texts})
            post(serving, "/embed_all", {"inputs": texts})
            post(serving, "/predict", {"inputs": [[text] for text in texts]})
            post(serving, "/fill-mask", {"inputs": [f"{text} [MASK]" for text in texts]})
    assert read_metrics(serving)["flaxbert_compilations"] == before

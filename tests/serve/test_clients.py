"""Other people's clients work unchanged."""

import huggingface_hub
import numpy as np
import openai
import pytest
import tritonclient.http as triton

from tests.serve.test_routes import TEXTS, TOLERANCE


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), atol=TOLERANCE)


def test_openai(serving):
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(input=TEXTS, model="vectors")
        assert next(model.id for model in client.models.list()) == "vectors"
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
            client.embeddings.create(input=TEXTS, model="vectors", dimensions=99)
    close([entry.embedding for entry in answer.data], serving.models["vectors"].encode(TEXTS))
    assert answer.usage.total_tokens > len(TEXTS)


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """The hub's client refuses every address where the process is told to be offline; sockets reach this machine only anyway."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def hub(serving, name):
    return huggingface_hub.InferenceClient(model=f"{serving.url}/models/{name}")


def test_inference_client_makes_vectors(serving):
    found = hub(serving, "vectors").feature_extraction(TEXTS[0])
    close(found, serving.models["vectors"].encode(TEXTS[:1]))
    similar = hub(serving, "vectors").sentence_similarity(TEXTS[0], TEXTS[1:])
    vectors = serving.models["vectors"].encode(TEXTS)
    close(similar, vectors[1:] @ vectors[0])


def test_inference_client_labels(serving):
    found = hub(serving, "film").text_classification(TEXTS[0])
    (expected,) = serving.models["film"].predict(TEXTS[:1])
    assert found[0].label == expected.label
    close([entry.score for entry in found], sorted(expected.scores.values(), reverse=True))
    assert len(hub(serving, "film").text_classification(TEXTS[0], top_k=1)) == 1


def test_inference_client_finds_entities(serving):
    found = hub(serving, "tagger").token_classification(TEXTS[2])
    (expected,) = serving.models["tagger"].predict([TEXTS[2]])
    assert [(e.entity_group, e.word, e.start, e.end) for e in found] == [
        (e.label, e.text, e.start, e.end) for e in expected.entities
    ]


def test_inference_client_answers(serving):
    question, context = "was it bad", "the film was fine . a bad film ."
    found = hub(serving, "reader").question_answering(question=question, context=context)
    (expected,) = serving.models["reader"].predict([question], [context])
    assert found.answer == expected.text
    assert found.score == pytest.approx(expected.score, abs=1e-5)


def test_inference_client_fills_masks(serving):
    found = hub(serving, "words").fill_mask("a [MASK] film", top_k=2)
    logits = serving.models["words"].predict_logits(["a [MASK] film"])[0][2]
    assert [entry.token for entry in found] == np.argsort(-logits)[:2].tolist()


def test_inference_client_judges_labels(serving):
    found = hub(serving, "nli").zero_shot_classification(TEXTS[0], candidate_labels=["fine", "bad"])
    assert {entry.label for entry in found} == {"fine", "bad"}
    assert sum(entry.score for entry in found) == pytest.approx(1.0)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_reads_and_writes_tensors(serving, binary):
    client = triton.InferenceServerClient(serving.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("vectors")
    assert client.is_model_ready("vectors", "1")
    assert client.get_server_metadata()["name"] == "flaxbert"
    assert client.get_model_metadata("vectors")["outputs"][0]["shape"] == [-1, 12]

    text = triton.InferInput("text", [len(TEXTS)], "BYTES")
    text.set_data_from_numpy(np.asarray(TEXTS, object), binary_data=binary)
    wanted = [triton.InferRequestedOutput("embedding", binary_data=binary)]
    for outputs in (wanted, None):
        answer = client.infer("vectors", [text], outputs=outputs, request_id="7")
        close(answer.as_numpy("embedding"), serving.models["vectors"].encode(TEXTS))
        assert answer.get_response()["id"] == "7"

    labelled = client.infer("film", [text]).as_numpy("label")
    assert [label.decode() if isinstance(label, bytes) else label for label in labelled] == [
        p.label for p in serving.models["film"].predict(TEXTS)
    ]
    ids = np.zeros((2, 6), np.int64)
    encoded = [serving.models["vectors"].tokenizer(t)["input_ids"] for t in TEXTS[:2]]
    mask = np.zeros_like(ids)
    for place, numbers in enumerate(encoded):
        ids[place, : len(numbers)], mask[place, : len(numbers)] = numbers, 1
    tensors = []
    for name, array in (("input_ids", ids), ("attention_mask", mask)):
        tensors.append(triton.InferInput(name, list(array.shape), "INT64"))
        tensors[-1].set_data_from_numpy(array, binary_data=binary)
    close(client.infer("vectors", tensors).as_numpy("embedding"), serving.models["vectors"].encode(TEXTS[:2]))
    with pytest.raises(Exception, match="no output 'wrong'"):
        client.infer("vectors", [text], outputs=[triton.InferRequestedOutput("wrong")])
    with pytest.raises(Exception, match="no model 'vector'"):
        client.infer("vector", [text])
    client.close()

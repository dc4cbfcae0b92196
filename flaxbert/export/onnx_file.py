"""Models as ONNX files."""

import json
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from flaxbert.core.trees import flatten_names
from flaxbert.export.graph import OPSET, Graph, Value, describe
from flaxbert.export.products import Products
from flaxbert.export.signature import Signature
from flaxbert.export.translate import Translator

LARGEST_FILE_BYTES = 1 << 31
"""A protobuf message holds less; weights of larger models go to a file beside it."""

IR_VERSION = 10
"""Version of the file format, the lowest that opset 21 has."""


def build_graph(signature: Signature, products: Products) -> Graph:
    """Returns the graph of a model.

    Args:
      signature: The model as a function.
      products: How matrix products are written.
    """
    leaves = flatten_names(signature.model.params)
    graph = Graph(leaves)
    closed = signature.trace()
    values = [Value(tuple(leaf.shape), "float32", leaf=name) for name, leaf in leaves.items()]
    values += [
        graph.add_input(name, atom.aval.shape)
        for name, atom in zip(signature.inputs, closed.jaxpr.invars[len(values) :], strict=True)
    ]
    translator = Translator(graph, products)
    results = translator.run(closed, values)
    for name, value, atom in zip(signature.outputs, results, closed.jaxpr.outvars, strict=True):
        graph.add_output(translator.full(value, atom), name)
    return graph


def used_nodes(graph: Graph) -> list[Any]:
    """Returns the nodes that the outputs hang on.

    Args:
      graph: The graph.
    """
    needed = {output.name for output in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
    return kept[::-1]


def to_model(graph: Graph, metadata: Mapping[str, str]) -> Any:
    """Returns a graph as a model of the file format.

    Args:
      graph: The graph.
      metadata: Properties by key.
    """
    from onnx import helper

    nodes = used_nodes(graph)
    needed = {name for node in nodes for name in node.input}
    outputs = {output.name for output in graph.outputs}
    body = helper.make_graph(
        nodes,
        "flaxbert",
        graph.inputs,
        graph.outputs,
        [tensor for name, tensor in graph.initializers.items() if name in needed],
        value_info=[describe(graph.shapes[name]) for node in nodes for name in node.output if name not in outputs],
    )
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    model = helper.make_model(body, producer_name="flaxbert", opset_imports=opsets, ir_version=IR_VERSION)
    helper.set_model_props(model, dict(metadata))
    return model


def write_model(model: Any, file: pathlib.Path, largest_bytes: int = LARGEST_FILE_BYTES) -> list[pathlib.Path]:
    """Writes a model, its weights in a file beside it where they would not fit.

    Args:
      model: The model.
      file: Where it goes.
      largest_bytes: Weights of so many bytes get a file of their own.

    Returns:
      The files that were written.
    """
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size < largest_bytes:
        onnx.save_model(model, str(file))
        onnx.checker.check_model(str(file), full_check=True)
        return [file]
    beside = file.with_name(file.name + ".data")
    onnx.save_model(
        model, str(file), save_as_external_data=True, location=beside.name, size_threshold=1024, convert_attribute=False
    )
    onnx.checker.check_model(str(file))
    return [file, beside]


def metadata_of(model: Any) -> dict[str, str]:
    """Returns what a file says of its model.

    Args:
      model: The ``Model``.
    """
    config = model.config
    names = {str(number): name for number, name in enumerate(config.labels)}
    return {
        "flaxbert_version": metadata.version("flaxbert"),
        "model_type": config.family,
        "task": model.task,
        "id2label": json.dumps(names, ensure_ascii=False),
        "max_length": str(model.max_length),
    }

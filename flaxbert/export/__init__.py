"""Models for other engines: ONNX, StableHLO, OpenVINO's IR and folders of stock transformers."""

from flaxbert.export.choosing import fastest_model
from flaxbert.export.export import FORMATS, ExportOptions, ExportResult, export_model
from flaxbert.export.running import in_engine

__all__ = ["FORMATS", "ExportOptions", "ExportResult", "export_model", "fastest_model", "in_engine"]

"""Models for other engines: ONNX, StableHLO, OpenVINO's IR and folders of stock transformers."""

from flaxbert.export.export import FORMATS, ExportOptions, ExportResult, export_model

__all__ = ["FORMATS", "ExportOptions", "ExportResult", "export_model"]

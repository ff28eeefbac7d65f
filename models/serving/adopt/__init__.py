"""Takes up an ONNX file that was made elsewhere."""

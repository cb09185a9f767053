"""A trained model as the files that other programs run: GGUF for llama.cpp, ONNX for onnxruntime."""

"""Old formats in, safetensors out; nothing in a file is ever imported or called (docs/security.md, docs/legacy.md).

source.py          what is this? then one of
original.py        the authors' PyTorch model
nvidia.py          NVIDIA DeepLearningExamples
hugging_face.py    folders of transformers
tensorflow.py      the authors' TensorFlow checkpoints, by tensorflow_file.py
sizes.py           what shapes say about the config
checkpoint.py      what all readers give; the config from it, arguments and a preset
conversion.py      writing and verifying
"""

"""Every public function called with a wrong type: each statement is an error of the type checker."""

import jaxface

encoder = jaxface.load_encoder(336)
clip = jaxface.load_clip("PE-Core-L14-336.pt", heads="sixteen")
config, model = jaxface.load_run(folder=0)
adapted = jaxface.adapt(encoder, "dora", rank="sixty-four")
plain = jaxface.merge("dora")
jaxface.save_weights(encoder, 3)
jaxface.save_peft(encoder, folder=None)
adapted = jaxface.load_peft("folder", "folder")
adapters = jaxface.stack_adapters([encoder, encoder])
ids = jaxface.tokenize(["a photo"], context_length="32")
predictor = jaxface.Predictor("runs/dora", batch_size="many")
report = jaxface.kernels.check("xla", rounds="five")
version: int = jaxface.__version__
encoder.tokenize("a photo")

"""A fine-tuning run of a second, for the tests of such runs."""

SOURCE = "synthetic:?n=60&size=48"
#: A run of a second: 5 steps an epoch.
WORDS = [
    "finetune", "none", SOURCE, "--backbone", "test_resnet", "--image-size", "32", "--batch-size", "8",
    "--epochs", "3", "--workers", "0", "--device", "cpu", "--log-every", "1", "--optim.warmup-epochs", "0",
    "--optim.lr", "0.01",
]  # fmt: skip

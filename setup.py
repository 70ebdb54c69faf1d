"""Package metadata: here, not in pyproject.toml, because Beam ships it to remote workers with --setup_file."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "carbrand/__init__.py").read_text()).group(1)

EXTRAS = {
    "beam": ["apache-beam>=2.77,<2.78", "pyarrow>=18"],
    "dask": ["apache-beam[dask]>=2.77,<2.78"],
    "tfds": ["tensorflow-datasets>=4.9.10,<4.10", "importlib_resources>=6"],
    "serve": ["prometheus-client>=0.21", "python-multipart>=0.0.20", "starlette>=0.46", "uvicorn>=0.34"],
    "tune": ["optuna>=5,<6"],
    "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
    "dev": [
        "coverage>=7.6",
        "hypothesis>=6.100",
        "imagehash>=4.3",
        "jsonschema>=4.23",
        "mypy>=1.15",
        "playwright>=1.50",  # drives the machine's own Chromium; it need not fetch one
        "pre-commit>=4",
        "psutil>=6",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "requests>=2.32",
        "ruff>=0.12",
    ],
}
EXTRAS["all"] = [need for name in ("beam", "tfds", "serve", "tune") for need in EXTRAS[name]]

setup(
    name="carbrand",
    version=VERSION,
    description="From a folder of labelled car photos to a brand classifier in production, on TensorFlow and Beam",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # Keras 3.15 needs Python 3.11; TensorFlow 2.21 and Beam 2.77 end at 3.13.
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["carbrand*", "beam_jobs*", "gin_configs*"]),
    package_data={"carbrand": ["py.typed", "**/templates/*", "**/page/*"], "gin_configs": ["*.gin", "*.space"]},
    install_requires=[
        "absl-py>=2.1",
        "gin-config>=0.5,<0.6",
        "google-crc32c>=1.6",
        "h5py>=3.11",
        "jinja2>=3.1",
        # training/optimizer.py overrides a private method of Keras's optimizers, tested for this range.
        "keras>=3.15,<3.16",
        "matplotlib>=3.9",
        "numpy>=2.1",
        "opencv-python-headless>=5,<6",
        "pillow>=11.3",  # the first with AVIF in its wheels
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "simplejpeg>=1.9,<2",
        "tensorboard>=2.20,<2.22",
        "tensorflow>=2.21,<2.22",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["carbrand = carbrand.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

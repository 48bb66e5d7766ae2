"""Amazon S3 storage for Django in one file, with no dependency but Django.

Copy this file into your project under any name, for instance ``libs/storages/minis3storage.py``,
or ``pip install .`` in a checkout. Then name the class in the settings, as README.rst shows::

    STORAGES = {'default': {'BACKEND': 'minis3storage.S3Storage',
                            'OPTIONS': {'bucket_name': 'my-bucket'}}, ...}

The map of the file. A module-level name is used only below its definition, so it reads from the
top; each floor calls the floors above it and nothing else:

    1  Errors              S3's answers as the exceptions a disk would have raised
    2  Text                percent-encoding, dates, XML
    3  Signing             Signature Version 4: headers, presigned URLs, POST policies
    4  Addressing          bucket, region and endpoint to scheme, host and path
    5  Transport           connections kept alive, proxies, retries. All of the network
    6  Credential sources  where keys come from
    7  Bucket              S3's operations in S3's words
    8  Files               a raw reader and a raw writer for io
       ---- below this line, and only here, Django ----
    9  Options             every setting, declared once
    10 Storages            S3Storage and its files
    11 Command line        python -m minis3storage

The idea, the settings' names and the calling formats come from the S3Storage.py of the first
django-storages (2008) and from S3.py, Amazon's sample library, on which it stood.

SPDX-License-Identifier: BSD-3-Clause
"""

import argparse
import atexit
import base64
import collections
import configparser
import contextlib
import datetime
import difflib
import errno
import functools
import gzip
import hashlib
import hmac
import io
import json
import logging
import mimetypes
import os
import pathlib
import posixpath
import random
import re
import sys
import threading
import time
import urllib.parse
import warnings
import weakref
import zlib
from concurrent.futures import FIRST_COMPLETED, Future, wait
from email.header import Header
from email.message import Message
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Tuple
from xml.etree import ElementTree

__version__ = '0.1.0'
__all__ = [
    'AccessDenied', 'Bucket', 'CallingFormat', 'Credentials', 'NoCredentials', 'NoSuchBucket',
    'NoSuchKey', 'NoSuchUpload', 'ObjectChanged', 'PreconditionFailed', 'S3Error', 'S3File',
    'S3ManifestStaticStorage', 'S3StaticStorage', 'S3Storage', 'S3StorageFile', 'Unreachable',
]

logger = logging.getLogger('minis3storage')


# ---- 1. Errors ---------------------------------------------------------------------------------
#
# S3's own codes as class names, each also what a disk would have raised. They are made in
# OSError's form, cls(errno, message, key), so that they pickle.


class S3Error(OSError):
    """What S3 answered instead of what was asked; the message says the fix where that tells.

    `status` is HTTP's (0 without an answer), `code` S3's own word for it ('' without one),
    `request_id` what the provider's support asks for, `filename` the key, `facts` what a repair
    uses: region, date, location, retry-after. `final`: no further attempt can help. `uncertain`:
    an earlier attempt may have been carried out.

    https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    """

    status, code, request_id, facts = 0, '', '', {}  # type: int, str, str, dict
    final = uncertain = False


class NoSuchKey(S3Error, FileNotFoundError):
    """There is no object under this key."""

class NoSuchBucket(S3Error):
    """There is no such bucket. Not a FileNotFoundError: every file would pass for absent."""

class NoSuchUpload(S3Error):
    """The multipart upload was completed or aborted, or never was."""

class AccessDenied(S3Error, PermissionError):
    """The credentials, their policy or the bucket's forbid it."""

class PreconditionFailed(S3Error, FileExistsError):
    """A conditional write found an object under the key."""

class ObjectChanged(S3Error):
    """The object was replaced while it was being read; open it again."""

class Unreachable(S3Error, ConnectionError):
    """No answer: name, connection, TLS or time. `final` for a certificate that is not trusted."""

class NoCredentials(S3Error, PermissionError):
    """No source has credentials; the message lists where they were looked for."""


#: S3's code, else the status -> (class, errno). What is not here is an S3Error, EIO.
ERRORS = {
    # To If-None-Match: some servers answer a PUT with 304.
    304: (PreconditionFailed, errno.EEXIST), 412: (PreconditionFailed, errno.EEXIST),
    400: (S3Error, errno.EINVAL), 409: (S3Error, errno.EBUSY), 501: (S3Error, errno.ENOSYS),
    401: (AccessDenied, errno.EACCES), 403: (AccessDenied, errno.EACCES),
    404: (NoSuchKey, errno.ENOENT),  # HEAD: no body, so no code
    'NoSuchBucket': (NoSuchBucket, errno.ENXIO), 'NoSuchUpload': (NoSuchUpload, errno.ESTALE),
    # AWS: another upload of the key ended in between; raised once `retry` asked in vain.
    'ConditionalRequestConflict': (PreconditionFailed, errno.EEXIST),
}

#: S3's code -> what to change. `{}` is the fact the answer gave; '403' is HEAD's, without a code.
ADVICE = {
    '403': 'wrong keys or no policy, listdir(\'\') tells; or missing, without s3:ListBucket',
    'AccessDenied': 'no policy allows it; without s3:ListBucket a missing key is 403 too',
    'AuthorizationHeaderMalformed': 'set region_name (AWS_S3_REGION_NAME) to {region!r}',
    'ExpiredToken': 'the session token has expired: get new temporary credentials',
    'InvalidAccessKeyId': 'access_key (AWS_ACCESS_KEY_ID) is not known to this endpoint',
    'InvalidToken': 'security_token (AWS_SESSION_TOKEN) does not belong to this access key',
    'NoSuchBucket': 'check bucket_name, endpoint_url and addressing_style: it was {place}',
    'PermanentRedirect': 'set region_name (AWS_S3_REGION_NAME) to {region!r}',
    'RequestTimeTooSkewed': 'set this machine\'s clock: the server says {date}',
    'SignatureDoesNotMatch': 'secret_key (AWS_SECRET_ACCESS_KEY) is wrong, or a proxy changes it',
}


def answer_error(status: int, code: str, message: str, key: str, request_id='',
                 facts=S3Error.facts) -> S3Error:
    """Return (not raise) the exception for an answer of `status` and S3's `code`."""
    cls, number = ERRORS.get(code) or ERRORS.get(status) or (S3Error, errno.EIO)
    advice = ADVICE.get(code or str(status), '').format(
        **dict({'region': 'the bucket\'s', 'date': 'otherwise', 'place': 'not there'}, **facts))
    text = ('%d %s' % (status, code)).strip() + (': ' + message if message else '')
    error = cls(number, '%s (%s)' % (text, advice) if advice else text, key)
    error.status, error.code, error.request_id, error.facts = status, code, request_id, facts
    return error


# ---- 2. Text -----------------------------------------------------------------------------------
#
# Text as S3 wants it and as S3 gives it. What is refused here is a ValueError.


#: All of it goes as it is; none of it ends a word or a line of a request; all can be shown.
_is_unreserved = re.compile('[A-Za-z0-9._~-]*\\Z').match
_is_word = re.compile(r'[\x21-\x7e]+\Z').match
_is_printable = re.compile(r'[\x20-\x7e]*\Z').match
_iso_date = re.compile(r'(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?Z?\Z').match


def quote(text: str, safe: str = '') -> str:
    """Percent-encode all but letters, digits, ``-._~`` and `safe`; no lone surrogates."""
    # The one encoder, of what is signed and what is sent. Fact: Python 3.6 would encode ~.
    if _is_unreserved(text):
        return text
    return urllib.parse.quote(text, safe=safe + '~')


def printable(text: Any) -> str:
    """Return what a server said in 300 printable characters, as messages and logs want it."""
    return re.sub(r'[^\x20-\x7e]+', ' ', str(text or ''))[:300]


def canonical_query(pairs: Iterable) -> str:
    """Return (name, value) pairs as a query string: encoded, then sorted as pairs."""
    # Trap: sorting decoded names puts é after Z; sorting joined text puts a-b= before a=.
    return '&'.join('%s=%s' % pair for pair in sorted((quote(n), quote(v)) for n, v in pairs))


def utcnow() -> datetime.datetime:
    """Return the time as an aware datetime."""
    return datetime.datetime.now(datetime.timezone.utc)


def amz_date(moment: datetime.datetime) -> str:
    """Return an aware datetime as ``20130524T000000Z``. Naive ones are a ValueError."""
    if moment.tzinfo is None:
        raise ValueError('a signature needs an aware datetime, not %r' % moment)
    utc = moment.astimezone(datetime.timezone.utc)
    return '%04d%02d%02dT%02d%02d%02dZ' % (  # Why not strftime: it takes twice as long
        utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second)


def parse_http_date(text: Optional[str]) -> Optional[datetime.datetime]:
    """Return HTTP's ``Wed, 12 Oct 2009 17:50:00 GMT`` as an aware datetime, None if it is none."""
    with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):
        moment = parsedate_to_datetime(text or '')  # Fact: TypeError before 3.10
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    return None


def parse_iso_date(text: str) -> datetime.datetime:
    """Return S3's ``2009-10-12T17:50:30.000Z`` as an aware datetime. Else ValueError."""
    found = _iso_date(text or '')  # Why not strptime: twice as long, and a page has 1,000
    if not found:
        raise ValueError('not a date of S3\'s: %.40r' % text)
    *numbers, fraction = found.groups('0')
    return datetime.datetime(
        *map(int, numbers), int(fraction[:6].ljust(6, '0')), datetime.timezone.utc)  # type: ignore


def format_iso_date(moment: datetime.datetime) -> str:
    """Return a datetime as ``2009-10-12T17:50:30Z``; a naive one is local, as with boto."""
    return moment.astimezone(datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')


def parse_xml(body: bytes) -> ElementTree.Element:
    """Return the root element of an answer, without namespaces. Anything else is a ValueError."""
    # Decoded here, so that what is looked for is what is parsed, whatever encoding it claims.
    # Fact: white space before it keeps slow answers alive.
    text = body.decode('utf-8-sig').lstrip()
    # S3's namespace; alikes have others. Trap: after the check, what it leaves could be a DOCTYPE.
    text = re.sub(' xmlns="[^"]*"', '', text, count=1)
    # Without a DOCTYPE no entity can expand or be fetched. A page of 1,000 keys has 12,000 tags
    # or so; the 8 MiB of one have room for two millions.
    if '<!DOCTYPE' in text or text.count('<') > 100000:
        raise ValueError('XML with a DOCTYPE or too many elements is refused')
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError('not XML: %s' % error) from None
    for element in root.iter() if 'xmlns' in text else ():
        element.tag = element.tag.rpartition('}')[2]
    return root


def xml_text(text: str) -> str:
    """Return `text` escaped for XML. ValueError for characters that XML 1.0 cannot hold."""
    if re.search('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]', text):
        raise ValueError('XML cannot hold the characters of %.80r' % text)
    # Trap: a parser reads CR and CRLF as LF unless they are character references.
    return re.sub('[<>&\t\n\r]', lambda found: '&#%d;' % ord(found.group()), text)


# ---- 3. Signing --------------------------------------------------------------------------------
#
# Pure: time and credentials are arguments, nothing is read or sent. `_Call.attempt` is the one
# caller of `sign`. Checked against AWS's own examples and, byte for byte, against botocore.
# https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html

ALGORITHM, UNSIGNED = 'AWS4-HMAC-SHA256', 'UNSIGNED-PAYLOAD'
MAX_EXPIRES = 604800  #: seconds, seven days: what S3 takes for a presigned URL
#: Headers that proxies and the transport may change. Everything else we set is signed.
#: Fact: Google's front end rewrites accept-encoding, which answers 403 to those who signed it.
NOT_SIGNED = frozenset(('accept-encoding', 'authorization', 'connection', 'content-length',
                        'expect', 'te', 'transfer-encoding', 'user-agent'))
_SECRET_HEADERS = re.compile(r'authorization|-(security|metadata)-token|-?customer-?key$')


class _SecretDict(dict):
    """A mapping of options that may hold secrets: headers, proxies."""

    def __repr__(self):
        return '{...}'


class Secret(str):
    """Text whose repr does not tell it: error reports show the repr of every local."""

    def __repr__(self):
        return "'...'"

    @classmethod
    def of(cls, value: Any) -> Any:
        """Return `value` with a repr that tells nothing: text, bytes as text, a dict."""
        value = value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
        return (cls(value) if isinstance(value, str) else
                _SecretDict(value) if isinstance(value, dict) else value)


_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+\Z").match


class Headers(dict):
    """Header names in lower case to values, of a mapping or of pairs; it hides what is secret.

    ValueError for a name that is no HTTP token and a value that is not printable ASCII or tab:
    http.client lets folded lines and NUL through, and sends Latin-1 where S3 signs UTF-8.
    """

    def __init__(self, headers=()):
        if isinstance(headers, Headers):  # they are checked
            self.update(headers)
            return
        for name, value in headers.items() if hasattr(headers, 'items') else headers:
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Add `value`, after a comma if the name is there already."""
        text = Secret if _SECRET_HEADERS.search(name.lower()) else str
        name, value = name.lower(), text(value)
        if not _is_token(name) or not _is_printable(value.replace('\t', ' ')):
            raise ValueError('header %.80r: %.80r is not printable ASCII' % (name, value))
        self[name] = text('%s,%s' % (self[name], value)) if name in self else value


class Credentials:
    """An access key, its secret, and for temporary ones a session token. The repr shows none.

    `expires` is when they end, an aware datetime; None: they do not.
    """

    access_key = secret_key = session_token = ''

    def __init__(self, access_key: str, secret_key: str, session_token='', expires: Any = None):
        # Trap: until it is checked, what was given as the access key may be the secret one.
        access_key, secret_key = Secret(access_key or ''), Secret(secret_key or '')
        self.session_token = session_token = Secret(session_token or '')
        for name, value in (('access_key', access_key), ('secret_key', secret_key)):
            if not _is_word(value):
                raise ValueError('%s is empty, or has blanks or other than ASCII in it' % name)
        if re.search('[/,]', access_key):
            raise ValueError('access_key holds a "/" or ",": is it the secret key?')
        self.access_key, self.secret_key, self.expires = str(access_key), secret_key, expires

    def __repr__(self):
        return '%s(%r, ...)' % (type(self).__name__, self.access_key)

    def lasts(self, now: datetime.datetime) -> float:
        """Return for how many seconds from `now`: infinity if they do not expire."""
        return (self.expires - now).total_seconds() if self.expires else float('inf')


class Anonymous(Credentials):
    """No credentials, for what all the world may read: they sign no request, and no URL."""

    def __init__(self):
        self.expires = None


class Request:
    """One question to S3, before it is signed.

    `host` is lower case, without a default port. `path` is percent-encoded, `query` holds pairs
    of plain text. `target` is the one string both signed and sent. `headers` may be a mapping or
    pairs, without the host. `body` is bytes-like; `payload_hash` its SHA-256 in hex, computed if
    not given.
    """

    def __init__(self, method: str, scheme: str, host: str, path: str, query=(), headers=(),
                 body: bytes = b'', payload_hash: str = ''):
        self.method, self.scheme, self.host, self.path = method, scheme, host, path
        self.query, self.headers, self.body = list(query), Headers(headers), body
        self.headers['host'] = host
        self.query_string = canonical_query(self.query) if self.query else ''
        self.target = path + ('?' + self.query_string if self.query else '')
        if not _is_word(self.target):
            raise ValueError('a path is percent-encoded, not %.80r' % path)
        self.payload_hash = payload_hash or hashlib.sha256(body).hexdigest()


def canonical_request(request: Request, query: str, headers: Headers, payload_hash: str) -> tuple:
    """Return (canonical request, signed header names joined by ``;``) for `headers`."""
    signed = ';'.join(sorted(set(headers) - NOT_SIGNED))
    lines = [request.method, request.path, query]
    # White space is collapsed here and nowhere else: what is sent keeps it.
    # Fact: Ceph 16 signs a tab within a value as a tab, and so answers 403; AWS collapses it.
    lines += ['%s:%s' % (name, ' '.join(headers[name].split())) for name in signed.split(';')]
    return '\n'.join(lines + ['', signed, payload_hash]), signed


is_region = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z').match


class Signer:
    """Signs with one set of credentials for one region; ValueError for a region that is none."""

    def __init__(self, credentials: Credentials, region: str, service: str = 's3'):
        if not is_region(region):
            raise ValueError('not a region: %.80r' % region)
        self.credentials, self.region, self.service = credentials, region, service
        # The last day, its scope, its key: replaced in one assignment, without a lock.
        self._day = '', '', b''
        # The last URL's: those of a page differ in the key alone.
        self._query = (), ''  # type: tuple
        self._told = False  # that URLs end with the credentials: once is enough

    def _of_day(self, stamp):
        """Return (day, credential scope, signing key) for `stamp`, worked out once a day.

        A scope is like ``20130524/us-east-1/s3/aws4_request``.
        """
        latest, day = self._day, stamp[:8]
        if latest[0] != day:
            scope = '%s/%s/%s/aws4_request' % (day, self.region, self.service)
            latest = self._day = day, scope, functools.reduce(
                lambda key, step: hmac.new(key, step.encode(), hashlib.sha256).digest(),
                scope.split('/'), b'AWS4' + self.credentials.secret_key.encode())
        return latest

    def string_to_sign(self, stamp: str, canonical: str) -> str:
        """Return the text to sign for a canonical request; `stamp` is as of `amz_date`."""
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return '\n'.join((ALGORITHM, stamp, self._of_day(stamp)[1], digest))

    def signature(self, stamp: str, text: str) -> str:
        """Return the signature of `text`, 64 hex digits."""
        return hmac.new(self._of_day(stamp)[2], text.encode(), hashlib.sha256).hexdigest()

    def sign(self, request: Request, now: datetime.datetime) -> Headers:
        """Return the headers to send: the request's own, x-amz-* and authorization."""
        stamp, headers = amz_date(now), Headers(request.headers)
        if not self.credentials.access_key:  # Anonymous
            return headers
        headers.update({'x-amz-date': stamp, 'x-amz-content-sha256': request.payload_hash})
        if self.credentials.session_token:
            headers.add('x-amz-security-token', self.credentials.session_token)
        canonical, signed = canonical_request(
            request, request.query_string, headers, request.payload_hash)
        headers['authorization'] = Secret('%s Credential=%s/%s, SignedHeaders=%s, Signature=%s' % (
            ALGORITHM, self.credentials.access_key, self._of_day(stamp)[1], signed,
            self.signature(stamp, self.string_to_sign(stamp, canonical))))
        return headers

    def _claims(self, now, expires):
        """Return (what a URL and a form carry in place of headers, as pairs; for how long).

        Fact: S3 refuses both once the credentials have ended. This way they say so.
        """
        if type(expires) is not int or not 1 <= expires <= MAX_EXPIRES:
            raise ValueError('expires is 1 to %d whole seconds, not %r' % (MAX_EXPIRES, expires))
        if not self.credentials.access_key:
            raise ValueError('without credentials neither a URL nor a form can be signed')
        left = self.credentials.lasts(now)
        if left < expires and not self._told:
            self._told = True
            logger.warning('URLs that were to last %d s end with their credentials, in %d s',
                           expires, left)
        stamp, token = amz_date(now), self.credentials.session_token
        claims = [('X-Amz-Algorithm', ALGORITHM), ('X-Amz-Date', stamp), ('X-Amz-Credential',
                  '%s/%s' % (self.credentials.access_key, self._of_day(stamp)[1]))]
        claims += [('X-Amz-Security-Token', token)] if token else []
        return claims, int(min(expires, max(left, 1)))

    def presign(self, request: Request, now: datetime.datetime, expires: int) -> str:
        """Return a URL that whoever holds it may use for `expires` seconds (1 to 604,800).

        Every header of the request is signed: the caller must send the same. Adding a parameter
        afterwards breaks the signature. It ends with temporary credentials.
        """
        stamp, latest = amz_date(now), self._query
        signed = ';'.join(sorted(set(request.headers) - NOT_SIGNED))
        asked = stamp, repr(expires), signed, request.query  # repr: '9' is to be refused
        if latest[0] != asked:
            claims, expires = self._claims(now, expires)
            latest = self._query = asked, canonical_query(request.query + claims + [
                ('X-Amz-Expires', str(expires)), ('X-Amz-SignedHeaders', signed)])
        canonical, _ = canonical_request(request, latest[1], request.headers, UNSIGNED)
        return '%s://%s%s?%s&X-Amz-Signature=%s' % (
            request.scheme, request.host, request.path, latest[1],
            self.signature(stamp, self.string_to_sign(stamp, canonical)))

    def post_policy(self, conditions: Iterable, now: datetime.datetime, expires: int) -> dict:
        """Return the fields that let a browser's form POST what `conditions` allow.

        `conditions` are S3's: {'key': 'a'}, ['starts-with', '$key', 'a/'],
        ['content-length-range', 0, 1024]. Those for the fields returned here are added.
        """
        claims, expires = self._claims(now, expires)
        fields = {name.lower(): value for name, value in claims}
        policy = {'expiration': format_iso_date(now + datetime.timedelta(seconds=expires)),
                  'conditions': list(conditions) + [{name: fields[name]} for name in fields]}
        fields['policy'] = base64.b64encode(json.dumps(policy).encode()).decode()
        fields['x-amz-signature'] = self.signature(amz_date(now), fields['policy'])
        return fields


# ---- 4. Addressing -----------------------------------------------------------------------------
#
# Pure as well: a bucket's name, an endpoint and a style go in, the parts of a URL come out.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html


class CallingFormat:
    """The 2008 names of AWS's addressing styles, for AWS_CALLING_FORMAT."""

    PATH = 'path'          #: https://host/bucket/key
    SUBDOMAIN = 'virtual'  #: https://bucket.host/key; AWS calls it virtual
    VANITY = 'vanity'      #: https://bucket/key: a domain that points to S3; for `url()` only


#: What people write -> style. 1, 2 and 3 were the constants of Amazon's S3.py.
STYLES = {'auto': 'auto', 'path': 'path', 'virtual': 'virtual', 'subdomain': 'virtual',
          'vanity': 'vanity', 1: 'path', 2: 'virtual', 3: 'vanity'}
#: style -> (host, path before the key)
FORMS = {'path': ('{host}', '{path}/{bucket}/'), 'virtual': ('{bucket}.{host}', '{path}/'),
         'vanity': ('{bucket}', '/')}

#: Where a bucket lives: `prefix` is the encoded path before the key, it ends with a slash.
Address = collections.namedtuple('Address', 'scheme host prefix')
#: The region in a host of AWS, B2, Wasabi, Scaleway, OVH, Spaces or Hetzner.
_REGION_LABEL = re.compile(
    r'(?:^|\.)(?:s3(?:-fips|-accesspoint)?(?:\.dualstack)?[.-]([a-z]{2,}-[a-z0-9-]+-\d+)'
    r'(?:\.vpce)?\.amazonaws\.(?:com|com\.cn|eu)'
    r'|s3\.([a-z0-9-]+)\.(?:(?:backblazeb2|wasabisys)\.com|scw\.cloud|io\.cloud\.ovh\.(?:net|us))'
    r'|([a-z]{3}\d)\.(?:digitaloceanspaces|your-objectstorage)\.com)$')
#: Finds a host of S3's at AWS, with or without a bucket before it; no other service's, no port.
#: Trap: anyone can have s3me-1.us-east-1.elb.amazonaws.com.
is_aws = re.compile(
    r'(?:^|\.)s3(?:-[a-z0-9-]+)?(?:\.dualstack)?(?:\.[a-z]+-[a-z0-9-]+)?(?:\.vpce)?'
    r'\.amazonaws\.(?:com|com\.cn|eu)\Z').search


@functools.lru_cache(maxsize=64)
def split_endpoint(url: str) -> tuple:
    """Return (scheme, host with any port but the default, path) of an endpoint URL, checked."""
    parts = urllib.parse.urlsplit(str(url).strip())
    host, path = (parts.hostname or '').rstrip('.'), parts.path.rstrip('/')
    # It is not shown: what is wrong may be that it has a password in it.
    if (parts.scheme not in ('http', 'https') or not host or parts.username is not None
            or parts.query or parts.fragment):
        raise ValueError('endpoint_url must be like https://s3.example.com[:port][/path], no more')
    host = '[%s]' % host if ':' in host else host
    if not re.match(r'(\[[0-9a-f:.]+\]|(?!-)[a-z0-9_-]+(\.[a-z0-9_-]+)*)\Z', host):
        raise ValueError('endpoint_url: %.80r is no host name, or not in xn-- form' % host)
    if re.search(r'[^A-Za-z0-9._~/%-]|//|/\.{1,2}(/|$)|%(?![0-9A-F]{2})', path):
        raise ValueError('endpoint_url: %.80r is no plain path' % path)
    if parts.port not in (None, {'http': 80, 'https': 443}[parts.scheme]):
        host = '%s:%d' % (host, parts.port)
    return parts.scheme, host, path


def endpoint_region(url: str) -> Optional[str]:
    """Return the region an endpoint's host names (AWS, B2, Wasabi, Spaces, ...), else None."""
    host = split_endpoint(url)[1].partition(':')[0]
    if host.endswith('.r2.cloudflarestorage.com'):
        return 'auto'
    found = _REGION_LABEL.search(host)
    return next(filter(None, found.groups())) if found else None


def aws_endpoint(region: str, scheme: str = 'https') -> str:
    """Return AWS's regional endpoint: the global one redirects, and browsers' CORS fails on it."""
    if not re.match(r'(?![a-z]+-iso)[a-z]{2,}-[a-z0-9-]+-[0-9]+\Z', region):
        raise ValueError('%.80r is no AWS region; set endpoint_url for another provider' % region)
    domain = {'cn': 'com.cn', 'eusc': 'eu'}.get(region.split('-')[0], 'com')
    return '%s://s3.%s.amazonaws.%s' % (scheme, region, domain)


@functools.lru_cache(maxsize=64)
def regional(endpoint: Optional[str], region: str) -> str:
    """Return AWS's endpoint of `region`, or `endpoint`; the region in a host of AWS's follows."""
    endpoint = aws_endpoint(region) if endpoint is None else endpoint
    named = is_aws(split_endpoint(endpoint)[1]) and endpoint_region(endpoint)
    return re.sub(r'(?i)\b%s\b' % named, region, endpoint, count=1) if named else endpoint


@functools.lru_cache(maxsize=64)
def address(bucket: str, endpoint: str, style: str = 'auto') -> Address:
    """Return where `bucket` lives below `endpoint`. ValueError for names that cannot be one."""
    if not re.match(r'(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}\Z', bucket):
        raise ValueError('neither a bucket\'s name nor an access point\'s alias: %.80r' % bucket)
    scheme, host, path = split_endpoint(endpoint)
    label = re.match(r'(?!.*\.\.)[a-z0-9][a-z0-9.-]{,61}[a-z0-9]\Z', bucket)
    numeric = re.match(r'\[|[0-9.]+(:|\Z)', host)  # an IP address has no subdomains
    fits = label and not numeric and (scheme == 'http' or '.' not in bucket)
    # `auto` is the subdomain on AWS and the path elsewhere. Both are the path for names that are
    # no host label or have dots over https: a wildcard certificate covers one label.
    if style in ('auto', 'virtual'):
        style = 'virtual' if fits and (style == 'virtual' or is_aws(host)) else 'path'
    if is_aws(host) and host.startswith('s3-accelerate') and (style == 'path' or '.' in bucket):
        raise ValueError('Transfer Acceleration takes subdomains without dots, not %r' % bucket)
    if style == 'vanity' and not label:
        raise ValueError('vanity addressing needs a bucket named like its domain, not %r' % bucket)
    return Address(scheme, *(form.format(bucket=bucket, host=host, path=path)
                             for form in FORMS[style]))


# ---- 5. Transport ------------------------------------------------------------------------------
#
# All of the network. urlopen() closes every connection and follows redirects with the
# Authorization header on; so http.client's parts are put together here.
#
# The way of a request: `send` finds the way to its host, `_open` takes an idle connection or
# makes one, `_exchange` sends and reads the head, and the Answer, once read to its end, puts the
# connection back. Around it stands `retry`, which the callers hand an attempt that signs afresh.
# What fails on the way is an Unreachable: it is not known whether S3 did what it was asked.
#
# After a fork nothing is shared: pools here, locks in CredentialSource and unfinished Writers are
# told by their process's id.

import http.client  # noqa: E402
import socket  # noqa: E402
import ssl  # noqa: E402
import urllib.request  # noqa: E402

POOL_SIZE = 32  #: idle connections kept for one key
POOL_AGE = 20   #: seconds a connection may idle. Fact: S3 closes them after some 20 s
LONGEST_HEAD = 60  #: seconds for the head of an answer, however steadily it drips
ONE_PIECE = 16 * 1024  #: bytes of a body that are sent in one call, one segment, with the head
SLICE = 256 * 1024  #: bytes sent in one call: sendall() counts its timeout in total
#: (pid, TLS, Way) -> deque of (time, idle connection), the newest at the right. A connection
#: belongs to one thread between pop and append: no lock.
_pools = {}  # type: dict


class _Lines(io.BufferedReader):
    """What an answer is read from. Trap: http.client takes a head that was cut for a whole one,
    102 and 103 for answers, and waits without end for what follows 100 or ends a trailer."""

    count = 0  # lines of this head or trailer

    def readline(self, limit=65537):
        if not self.count:
            self.until = time.monotonic() + LONGEST_HEAD
        line, piece, self.count = b'', b'-', self.count + 1
        while piece and not line.endswith(b'\n') and len(line) < limit:
            piece = self.peek(1)  # what one read of the socket brings
            line += super().readline(min(len(piece), limit - len(line)))
            if time.monotonic() > self.until:
                raise socket.timeout('the head of the answer drips')
        if not line.endswith(b'\n') or self.count > 1000:
            raise ConnectionResetError('the head of the answer broke off or has no end')
        return b'HTTP/1.1 100\r\n' if re.match(br'HTTP/1\.\d 1\d\d\b', line) else line

    def read(self, size=-1):
        self.count = 0  # the end of a chunk
        return super().read(size)


_is_last = re.compile(br'HTTP/1\.\d [2-9]').match  # no 100, 102 or 103, which others follow


class _Response(http.client.HTTPResponse):
    """http.client's response, refused by HTTPException if its end cannot be told."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fp = _Lines(self.fp.detach())  # here: the answer to CONNECT is read without begin()

    def begin(self):
        # Mostly a head comes in one piece. Then none of its lines can drip or break off, and
        # _Lines need not look at each, which takes as long as all the rest of the answer.
        head = self.fp.peek(1)
        if b'\r\n\r\n' in head and _is_last(head):
            self.fp.readline = super(_Lines, self.fp).readline
        super().begin()
        vars(self.fp).pop('readline', None)
        self.fp.count = 0
        lengths = ','.join(set(self.headers.get_all('content-length', ())))
        coded = self.headers.get('transfer-encoding') and not self.chunked
        if coded or self.status < 200 or not re.match(r'(\d{1,18}\s*)?\Z', lengths):
            raise http.client.HTTPException('where the answer ends cannot be told')


@atexit.register
def _close_idle(pid=None):
    """Close the idle connections, but those of process `pid`: at exit all, for ResourceWarnings;
    after a fork the parent's, where closing our half of a socket ends nothing on the wire."""
    for key in list(_pools):
        for _, connection in _pools.pop(key, ()) if key[0] != pid else ():
            connection.close()


def _check_out(key):
    """Return the idle connection used last, None if there is none that is young and silent."""
    if key not in _pools:  # after a fork the child starts with empty ones
        _close_idle(key[0])
    idle = _pools.setdefault(key, collections.deque())
    while idle:
        try:
            since, connection = idle.pop()
        except IndexError:
            break  # another thread took it
        try:  # All that can be read is the end, or stray bytes that answer no request.
            connection.sock.settimeout(0)
            connection.sock.recv(1)
        except OSError as error:
            silent = isinstance(error, (BlockingIOError, ssl.SSLWantReadError))
            if silent and time.monotonic() - since <= POOL_AGE:
                return connection
        connection.close()
    return None


class Answer:
    """An answer: `status`, `reason`, `headers` (get() ignores case), and a body to read once.

    Read it to the end or close it: the first puts the connection back in the pool, the second
    drops it. `remaining` is how many bytes are to come, None if only the end will tell (Trap:
    http.client takes a short body for a whole one). `resent`: the request went out twice.
    """

    def __init__(self, response, connection, key, resent):
        self.status, self.reason, self.headers = response.status, response.reason, response.headers
        self.remaining, self.resent = response.length, resent
        self._response, self._connection, self._key = response, connection, key
        if self.remaining == 0:
            self.close(reuse=True)

    def close(self, reuse: bool = False) -> None:
        """Drop the connection, or put it back if the body was read to its end."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._response.close()
        if not reuse or self._response.will_close:
            return connection.close()
        idle, now = _pools.setdefault(self._key, collections.deque()), time.monotonic()
        idle.append((now, connection))
        try:
            while len(idle) > POOL_SIZE or now - idle[0][0] > POOL_AGE:
                idle.popleft()[1].close()
        except IndexError:
            pass  # another thread took the last one

    __del__ = close

    def readinto(self, buffer: memoryview, fill: bool = True) -> int:
        """Fill `buffer`, return how many bytes; 0 ends a whole body, else it is Unreachable.

        Not `fill`: what one read of the socket brings will do.
        """
        if self._connection is None:
            return 0
        why = 'the connection ended %s bytes before the body' % self.remaining
        try:
            read = self._response.readinto if fill else self._response.readinto1
            count = read(buffer[:self.remaining])
            if self.remaining is not None:
                self.remaining -= count
            if self.remaining == 0 or self.remaining is None and not count:
                self.close(reuse=True)
            if count or self._connection is None:
                return count
        except (OSError, http.client.HTTPException) as error:
            why = 'the body broke off: %s' % (printable(error) or type(error).__name__)
        self.close()
        # Raised out here, so that no frame of http.client hangs on it: they hold the headers.
        raise Unreachable(errno.ECONNRESET, why)

    def read(self, limit: int, seconds: float = float('inf')) -> bytes:
        """Return the whole body. One of more than `limit` bytes is an S3Error, unread.

        Unreachable once it took `seconds`, however steadily it drips.
        """
        body, end = bytearray(), time.monotonic() + seconds
        piece = memoryview(bytearray(min(limit + 1, SLICE)))
        while len(body) + (self.remaining or 0) <= limit:
            if time.monotonic() > end:
                self.close()
                raise Unreachable(errno.ETIMEDOUT, 'no whole body in %d seconds' % seconds)
            count = self.readinto(piece, fill=False)
            if not count:
                return bytes(body)
            body += piece[:count]
        self.close()
        raise S3Error(errno.EMSGSIZE, 'an answer of more than %d bytes is refused' % limit)


@functools.lru_cache(maxsize=16)
def _tls_context(verify):
    """Return the SSLContext of `verify`, made once: loading the system's CAs takes 21 ms."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    try:
        context = ssl.create_default_context(cafile=verify or None)
    except OSError as error:
        raise ValueError('verify: no CA certificates in %r: %s' % (verify, error)) from None
    if verify is False:
        warnings.warn('verify=False: anyone on the way can read and change it', RuntimeWarning)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


#: How a host is reached: what to connect to, the host to ask a proxy for a tunnel to, headers
#: for the proxy, whether the request's line holds the whole URL, as for a proxy of http.
Way = collections.namedtuple('Way', 'scheme host tunnel headers whole')


class Transport:
    """Sends signed requests: connections kept alive, proxies, TLS. Safe in threads and forks.

    `verify` is None (the system's CAs), a CA file's path, an ssl.SSLContext, or False.
    `proxies` is {'http': url, 'https': url}, {} for none, None for the environment's;
    no_proxy is honoured. Timeouts are in seconds: connecting to one address, and each read.
    """

    #: What failed -> what to change. The first that fits.
    ADVICE = ((socket.timeout, 'no answer in time, see connect_timeout and read_timeout'),
              (socket.gaierror, 'check endpoint_url, region_name, bucket_name, addressing_style, '
               'custom_domain'),
              (ConnectionRefusedError, 'nothing listens there: check endpoint_url and its port'),
              ((ssl.SSLError, ssl.CertificateError),  # Fact: they are two before Python 3.7
               'check the scheme of endpoint_url; for a CA of its own set verify to its file'))

    def __init__(self, verify=None, proxies=None, connect_timeout=10, read_timeout=60):
        self.verify, self.timeouts = verify, (connect_timeout, read_timeout)
        self._proxies = Secret.of(urllib.request.getproxies() if proxies is None else proxies)
        # Once a host: for each request it would take as long as all that is sent.
        self._way = functools.lru_cache(maxsize=64)(self._find_way)

    def _find_way(self, scheme, host):
        """Return the Way to `host`. OSError for a proxy that speaks neither http nor https."""
        proxy = Secret.of(self._proxies.get(scheme))
        if not proxy or urllib.request.proxy_bypass(host):
            return Way(scheme, host, None, (), False)
        kind, _, rest = (('' if '://' in proxy else 'http://') + proxy).partition('://')
        user, _, server = rest.rpartition('@')
        kind, server = kind.lower(), server.partition('/')[0]
        if kind not in ('http', 'https') or not server:
            raise OSError('a proxy is like http://[user:password@]proxy.example.com[:port]')
        login = Secret('Basic ' + base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode())
        headers = (('Proxy-Authorization', login),) if ':' in user else ()
        way = (scheme, server, host) if scheme == 'https' else (kind, server, None)
        return Way(*way, headers, scheme == 'http')

    def _open(self, way, request, headers):
        """Return an Answer, over an idle connection if one is there and alive."""
        key = os.getpid(), self.verify, way
        idle = _check_out(key)
        if idle:
            try:
                return self._exchange(idle, key, request, headers, False)
            except (ConnectionError, ssl.SSLError):
                pass  # it died before the head of the answer, and is replaced
        options = {'context': _tls_context(self.verify)} if way.scheme == 'https' else {}
        kind = http.client.HTTPSConnection if options else http.client.HTTPConnection
        connection = kind(way.host, timeout=self.timeouts[0], **options)
        connection.response_class = _Response
        if way.tunnel:
            connection.set_tunnel(way.tunnel, headers=dict(way.headers))
        return self._exchange(connection, key, request, headers, bool(idle))

    def _exchange(self, connection, key, request, headers, resent):
        """Send, and return the Answer once its head is read. Any failure drops the connection."""
        way, target, body = key[-1], request.target, memoryview(request.body)
        opened, refused = [connection], None
        if way.whole:
            target = '%s://%s%s' % (request.scheme, request.host, target)
            headers = dict(headers, **dict(way.headers))
        head = '%s %s HTTP/1.1\r\n%s\r\n' % (
            request.method, target, ''.join(['%s: %s\r\n' % pair for pair in headers.items()]))
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(self.timeouts[1])  # Trap: it keeps its last user's
            try:
                connection.sock.sendall(head.encode() + body[:ONE_PIECE])
                for at in range(ONE_PIECE, len(body), SLICE):
                    connection.sock.sendall(body[at:at + SLICE])
            except (ConnectionError, ssl.SSLEOFError, socket.timeout) as error:
                # Fact: S3 may refuse a large PUT at once and close; its answer is still there.
                refused = error
                connection.sock.settimeout(min(1, self.timeouts[1]))
            response = _Response(connection.sock, method=request.method)
            opened.append(response)
            response.begin()
            if refused and response.status < 300:  # it cannot have what was never sent
                raise refused
            response.will_close = response.will_close or refused is not None
            return Answer(response, connection, key, resent)
        except BaseException:
            for each in opened:  # Fact: a socket stays open until its response is closed, too
                each.close()
            raise

    def send(self, request: Request, headers: Headers) -> Answer:
        """Send `request` with signed `headers`, return the Answer. Unreachable if none came."""
        started, way = time.monotonic(), None
        try:
            way = self._way(request.scheme, request.host)
            answer = self._open(way, request, headers)
            logger.debug('%s %s -> %d in %.3f s', request.method, request.path, answer.status,
                         time.monotonic() - started)
            return answer
        except (OSError, http.client.HTTPException, ssl.CertificateError) as error:
            advice = next((text for kind, text in self.ADVICE if isinstance(error, kind)), '')
            direct = way and way.host == request.host
            failure = Unreachable(errno.ECONNREFUSED, '%s://%s%s: %s: %s (%s)' % (
                request.scheme, request.host, '' if direct else ' by a proxy (proxies, '
                'http(s)_proxy)', type(error).__name__, printable(error), advice or 'no answer'))
            failure.final = isinstance(error, ssl.CertificateError) or 'VERIFY' in str(error)
        raise failure  # out here, as in Answer.readinto

    def ask(self, method: str, url: str, headers=(), body: bytes = b'') -> Answer:
        """Send an unsigned request for any `url`, return the Answer whatever its status.

        To what is not S3, or as somebody would who has no keys. A redirect is not followed.
        """
        to = urllib.parse.urlsplit(url)
        scheme, host, _ = split_endpoint('%s://%s' % (to.scheme, to.netloc))
        query, headers = urllib.parse.parse_qsl(to.query, True), Headers(headers)
        headers['content-length'] = str(len(body))
        request = Request(method, scheme, host, to.path or '/', query, headers, body)
        return self.send(request, request.headers)


RETRY_TOKENS = 500  #: an endpoint's. Precedent: botocore, as for costs and scales in `retry`
#: Endpoint's host -> tokens left, so that an outage is not hammered: retries cost, success wins
#: back. Without a lock: a token lost to a race is no harm.
_tokens = collections.defaultdict(lambda: RETRY_TOKENS)  # type: dict
#: Statuses and S3's codes.
THROTTLED = {429, 'SlowDown', 'Throttling', 'ThrottlingException', 'RequestThrottled',
             'TooManyRequestsException', 'RequestLimitExceeded', 'BandwidthLimitExceeded',
             'PriorRequestNotComplete'}
RETRIED = THROTTLED | {408, 500, 502, 503, 504, 'RequestTimeout', 'InternalError',
                       'ConditionalRequestConflict'}
LONGEST_PAUSE = 20  #: seconds, also for Retry-After: a server may ask for an hour


def retry(attempt: Callable, host: str, mend: Callable = lambda error: False, max_attempts=4,
          deadline=120, clock=time.monotonic, sleep=time.sleep, rand=random.random) -> Any:
    """Return what `attempt()` returns; repeat it while its S3Error is a passing one.

    `attempt` signs afresh each time. `mend(error)` may repair the cause (a wrong region): then
    the next attempt comes at once and costs nothing. Else exponential back-off with full jitter;
    no attempt starts after `deadline` seconds, nor once `host` has no tokens. The last error is
    raised, with `uncertain` set if an earlier attempt may have been carried out.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
    """
    started, failures, cost, uncertain = clock(), 0, 1, False
    while True:
        try:
            result = attempt()
            _tokens[host] = min(RETRY_TOKENS, _tokens[host] + cost)
            return result
        except S3Error as error:
            error.uncertain |= uncertain
            pause = 0
            if not mend(error):
                failures += 1
                lost, answered = isinstance(error, Unreachable), {error.status, error.code}
                scale, cost = (1, 5) if answered & THROTTLED else (0.05, 14)
                pause = max(rand() * min(scale * 2 ** (failures - 1), LONGEST_PAUSE),
                            min(error.facts.get('retry-after', 0), LONGEST_PAUSE))
                passing = lost and not error.final or answered & RETRIED
                if (not passing or failures >= max_attempts or _tokens[host] < cost
                        or clock() + pause - started > deadline):
                    raise
                _tokens[host] -= cost
                uncertain = error.uncertain or lost or error.status >= 500 and scale < 1
            logger.info('%s: attempt %d failed, next in %.2f s: %s (request id %s)', host,
                        failures or 1, pause, error.strerror, error.request_id or 'none')
        sleep(pause)


# ---- 6. Credential sources ---------------------------------------------------------------------
#
# One source, complete or unused: a token of one place never goes with the keys of another, as
# that answers 403 with a message that points nowhere. Each source is a function that returns
# Credentials, or None where there is nothing of its kind. What is there but fails is an error:
# the next source may be somebody else's. CredentialSource asks them in turn, and keeps.
# https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html

RENEWED = 300    #: seconds before they expire. Fact: EC2 has new ones that long before
LOOK_AGAIN = 60  #: seconds for which "none found" is remembered; a failure for a tenth of them
#: Where credentials may come from without TLS: this machine, the agents of EC2, ECS and EKS.
_NEAR = re.compile(
    r'(localhost|127\.[\d.]+|169\.254\.(169\.254|170\.23?)|\[(::1|fd00:ec2::23)\])(:\d+)?\Z')


def environment_credentials(environ: Mapping) -> Optional[Credentials]:
    """Return the Credentials of AWS's environment variables, None if there are none.

    AWS_S3_ forms first. A set is complete or unused; a token is never taken from another set.
    """
    for prefix in ('AWS_S3_', 'AWS_'):
        keys = [Secret.of(environ.get(prefix + n)) for n in ('ACCESS_KEY_ID', 'SECRET_ACCESS_KEY')]
        if all(keys):
            other = prefix == 'AWS_S3_' and environ.get('AWS_ACCESS_KEY_ID')  # it is its
            return Credentials(keys[0], keys[1], None if other else environ.get(
                'AWS_SESSION_TOKEN') or environ.get('AWS_SECURITY_TOKEN'))
    return None


def profile(environ: Mapping, name: Optional[str] = None) -> list:
    """Return what AWS's two files say of profile `name`, else AWS_PROFILE, else the default.

    One mapping for each file, and never the union: keys and token of one set are in one file.
    ValueError for a profile that was named but is in neither, and for a file that is none.

    https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html
    """
    name, found = name or environ.get('AWS_PROFILE') or 'default', []
    for variable, file in (('AWS_SHARED_CREDENTIALS_FILE', '~/.aws/credentials'),
                           ('AWS_CONFIG_FILE', '~/.aws/config')):
        parser, file = configparser.RawConfigParser(strict=False), environ.get(variable) or file
        with contextlib.suppress(configparser.Error, UnicodeError):
            parser.read(os.path.expanduser(file), 'utf-8')
            found += [dict(parser[s]) for s in (name, 'profile ' + name) if s in parser]
            continue
        raise ValueError('%s is no file of profiles' % file)  # configparser's tells the line
    if not found and name != 'default':
        raise ValueError('no profile %r in ~/.aws/credentials and ~/.aws/config' % name)
    return found


def profile_credentials(environ: Mapping, name: Optional[str] = None) -> Optional[Credentials]:
    """Return the keys of a profile in AWS's files, None if it has none.

    ValueError for one that says where else to get them. AWS's tools would go there, and what is
    read here instead could be somebody else's.
    """
    sections = profile(environ, name)
    for word in sorted(set().union(*sections)):
        if re.match('role_arn|sso_|credential_process|web_identity', word):
            raise ValueError('the profile has %s, but only keys are taken from profiles: export '
                             'them, or give a callable as credentials' % word)
    # The words are those of the environment, but for their case.
    keys = ({word.upper(): text for word, text in section.items()} for section in sections)
    return next(filter(None, map(environment_credentials, keys)), None)


def _fetch(transport, method, url, headers=(), form=''):
    """Return the body of a 200 as a Secret, else raise S3Error.

    No attempt starts after a second: threads wait for this, and where there is no service, as on
    a laptop, the last source of all ends in a timeout.
    """
    host = urllib.parse.urlsplit(url).netloc
    if not url.startswith('https://') and not _NEAR.match(host):
        raise ValueError('%s: credentials come over https, or from this machine' % (
            host.rpartition('@')[2]))  # the rest may be a secret

    def attempt():
        answer = transport.ask(method, url, headers, form.encode())
        body = Secret.of(answer.read(SLICE, transport.timeouts[1]))
        if answer.status == 200:
            return body
        said = ': '.join(re.findall('<(?:Code|Message)>([^<]+)', body))  # by STS
        raise answer_error(answer.status, answer.reason, printable(said), url)
    return retry(attempt, host, deadline=1)


def _temporary(fields):
    """Return the Credentials in a service's answer, a mapping in one of two dialects."""
    return Credentials(fields['AccessKeyId'], fields['SecretAccessKey'],
                       fields.get('SessionToken') or fields.get('Token'),
                       parse_iso_date(fields['Expiration']))


def pod_credentials(environ: Mapping, transport: Transport, region: str) -> Optional[Credentials]:
    """Return what STS gives for the token in AWS_WEB_IDENTITY_TOKEN_FILE, as in pods of EKS.

    It is AWS's STS of `region`, or AWS_ENDPOINT_URL_STS.

    https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
    """
    file, role = environ.get('AWS_WEB_IDENTITY_TOKEN_FILE'), environ.get('AWS_ROLE_ARN')
    if not file or not role:
        return None
    url = environ.get('AWS_ENDPOINT_URL_STS') or aws_endpoint(region).replace('//s3', '//sts')
    form = Secret(canonical_query({
        'Action': 'AssumeRoleWithWebIdentity', 'Version': '2011-06-15', 'RoleArn': role,
        'RoleSessionName': environ.get('AWS_ROLE_SESSION_NAME') or 'minis3storage',
        'WebIdentityToken': pathlib.Path(file).read_text().strip()}.items()))
    found = parse_xml(_fetch(transport, 'POST', url, {
        'content-type': 'application/x-www-form-urlencoded'}, form).encode()).iter()
    return _temporary({element.tag: element.text for element in found})


def container_credentials(environ: Mapping, transport: Transport) -> Optional[Credentials]:
    """Return what the agent of ECS or EKS gives to this container, None outside of one.

    ECS sets a path, EKS a URL and a file with a token, which is read each time.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
    """
    path, url, file, token = (Secret(environ.get('AWS_CONTAINER_' + name, '')) for name in (
        'CREDENTIALS_RELATIVE_URI', 'CREDENTIALS_FULL_URI', 'AUTHORIZATION_TOKEN_FILE',
        'AUTHORIZATION_TOKEN'))
    url = Secret('http://169.254.170.2' + path) if path else url
    token = Secret(pathlib.Path(file).read_text().strip()) if file else token
    headers = {'authorization': token} if token else {}
    return _temporary(json.loads(_fetch(transport, 'GET', url, headers))) if url else None


def instance_credentials(environ: Mapping, transport: Transport) -> Optional[Credentials]:
    """Return those of this EC2 instance's role; None without a role, or outside of EC2.

    Version 2 alone: it wants a PUT and a header, which nobody can talk a web server's own
    requests into.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    """
    if environ.get('AWS_EC2_METADATA_DISABLED', '').lower() == 'true':
        return None
    base, name, role = 'http://169.254.169.254/latest/', 'x-aws-ec2-metadata-token', ''
    roles = base + 'meta-data/iam/security-credentials/'
    try:
        token = {name: _fetch(transport, 'PUT', base + 'api/token', {name + '-ttl-seconds': '60'})}
        role = _fetch(transport, 'GET', roles, token).strip()
    except S3Error as error:  # nothing there, or nothing that is EC2's
        if error.status in RETRIED:
            raise  # it is, and fails
    return _temporary(json.loads(_fetch(transport, 'GET', roles + role, token))) if role else None


class CredentialSource:
    """The first of `lookups` that has credentials; kept, and renewed before they expire.

    A lookup is a (name, callable) pair; the callable returns Credentials or None. One thread
    asks for all; the others go on with the old ones while they last, and so do all if there are
    no new ones. Safe in threads and forks.
    """

    def __init__(self, *lookups, utcnow=utcnow, clock=time.monotonic):
        self._lookups, self._utcnow, self._clock, self._locks = lookups, utcnow, clock, {}
        self._asking, self._failed = None, float('-inf')  # the thread that asks; the last failure
        # Credentials or None, when to ask again, where they are from or why there are none.
        self._kept = None, 0, ''  # replaced in one assignment

    def get(self, refused: Optional[Credentials] = None) -> Credentials:
        """Return the credentials, the same object until they are renewed. Else NoCredentials.

        Those that S3 `refused` are renewed now, unless that failed a moment ago.
        """
        kept = self._kept
        if kept[0] and not refused and self._clock() < kept[1]:
            return kept[0]
        # One a process: a fork has no thread that would release its parent's.
        lock = self._locks.setdefault(os.getpid(), threading.Lock())
        usable = kept[0] and kept[0] is not refused and kept[0].lasts(self._utcnow()) > 0
        # Trap: a finalizer or a log handler may come here out of `_look`, and wait for itself.
        if lock.acquire(not usable and self._asking != threading.get_ident()):
            try:
                self._asking, kept, now = threading.get_ident(), self._kept, self._clock()
                if now >= kept[1] or refused and kept[0] is refused and (
                        now - self._failed >= LOOK_AGAIN / 10):
                    kept = self._kept = self._look(kept[0])
            finally:
                self._asking = None
                lock.release()
        if not kept[0]:
            raise NoCredentials(errno.EACCES, kept[2] or 'this very thread is looking for them')
        return kept[0]

    def _look(self, old):
        """Return what is kept from now on, after `old`. A failure is no exception but a reason:

        frames and contexts of exceptions would hold the answers, and end up in error reports.
        """
        now, pause = self._utcnow(), LOOK_AGAIN
        why = 'no credentials in ' + ', '.join(name for name, _ in self._lookups)
        try:
            for name, look in self._lookups:
                found = look()
                if found:
                    left = found.lasts(now)
                    return found, self._clock() + max(left - RENEWED, left / 2, 1), name
        except Exception as error:  # a callable of the project's may raise anything
            pause, self._failed = LOOK_AGAIN / 10, self._clock()
            why = '%s: %s: %s' % (name, type(error).__name__, printable(error))
        left = old.lasts(now) if old else 0
        if left <= 0:
            return None, self._clock() + pause, why
        # Next when half of what is left is over: a failing service is asked ever sooner.
        logger.warning('credentials are not renewed and end at %s: %s', old.expires, why)
        return old, self._clock() + max(left / 2, 1), why

    def renew(self, old: Credentials) -> bool:
        """Ask again unless another thread has; True if there are others now than `old`."""
        new = self.get(old)
        return (new.access_key, new.session_token) != (old.access_key, old.session_token)


@functools.lru_cache(maxsize=16)
def aws_source(name=None, region='us-east-1', verify=None, proxies=None) -> CredentialSource:
    """Return the CredentialSource of AWS's places in their order, only profile `name` if given.

    One for all buckets: those of many tenants would else ask STS or EC2 once each. STS is asked
    with `verify` and `proxies`, Transport's, but these as pairs; what is on this machine is asked
    without a proxy, and for a second.
    """
    far = Transport(verify, None if proxies is None else dict(proxies))
    near = Transport(verify, {}, 1, 1)
    lookups = [(place, functools.partial(look, os.environ, *more)) for place, look, *more in (
        ('the environment (AWS_ACCESS_KEY_ID)', environment_credentials),
        ('the profile %s' % (name or '(AWS_PROFILE)'), profile_credentials, name),
        ('a web identity (AWS_WEB_IDENTITY_TOKEN_FILE)', pod_credentials, far, region),
        ('a container (AWS_CONTAINER_CREDENTIALS_..._URI)', container_credentials, near),
        ('an instance role (169.254.169.254)', instance_credentials, near))]
    return CredentialSource(*lookups[1:2] if name else lookups)


# ---- 7. Bucket ---------------------------------------------------------------------------------
#
# One method an action of S3's, with S3's name. It returns when the action is done, or raises: an
# error is never turned into an answer. All come down to `_Call`, a request and its repetitions.

ERROR_LIMIT = 64 * 1024        #: bytes of an error's body, and of one nobody needs
XML_LIMIT = 8 * 1024 * 1024    #: bytes of a listing's page
KEY_LIMIT = 1024               #: bytes of a key in UTF-8


class Entry(collections.namedtuple('Entry', 'key size etag modified')):
    """An object in a listing: `size` in bytes, `etag` quoted, `modified` in S3's words."""

    @property
    def last_modified(self) -> datetime.datetime:
        """When it was stored. Not worked out before it is asked: a fifth of a listing's time."""
        return parse_iso_date(self.modified)


#: A page of a listing: Entry tuples, and the common prefixes, each with its delimiter.
Listing = collections.namedtuple('Listing', 'contents common_prefixes')


def md5(data: bytes = b'') -> Any:
    """Return hashlib's MD5 of `data`, None where FIPS forbids it. Integrity, not secrecy."""
    for options in {'usedforsecurity': False}, {}:  # Fact: the keyword is new in 3.9
        with contextlib.suppress(TypeError, ValueError):
            return hashlib.md5(data, **options)
    return None


#: S3's names for the parameters of an upload -> headers. After a = the header's other words.
PARAMETERS = {
    name.partition('=')[0]: re.sub(
        '(?<=[a-z])(?=[A-Z])', '-', form + name.rpartition('=')[2]).lower() for form, names in (
    ('', 'CacheControl ContentDisposition ContentEncoding ContentLanguage ContentType Expires'),
    ('x-amz-', 'ACL GrantFullControl GrantRead GrantReadACP GrantWriteACP ServerSideEncryption '
     'StorageClass Tagging WebsiteRedirectLocation ObjectLockMode ObjectLockRetainUntilDate '
     'ObjectLockLegalHoldStatus=ObjectLockLegalHold RequestPayer ExpectedBucketOwner '
     'ChecksumCRC32 ChecksumCRC32C ChecksumSHA1 ChecksumSHA256 Metadata=Meta'),
    ('x-amz-server-side-encryption-', 'BucketKeyEnabled SSEKMSKeyId=AwsKmsKeyId '
     'SSEKMSEncryptionContext=Context SSECustomerAlgorithm=CustomerAlgorithm '
     'SSECustomerKey=CustomerKey SSECustomerKeyMD5=CustomerKeyMD5')) for name in names.split()}


def object_headers(parameters: dict) -> dict:
    """Return the headers for an upload's `parameters`, in S3's names or with a dash in headers'.

    Metadata is a mapping; beyond ASCII it is sent as RFC 2047 has it. Tagging is a mapping or a
    query, a date a datetime, SSECustomerKey the key's 32 bytes. ValueError for other names.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
    """
    headers, parameters = Secret.of({}), Secret.of(parameters)  # as locals, too
    for name, value in parameters.items():
        if value is None:  # not given
            continue
        if name not in PARAMETERS and '-' not in name:
            near = difflib.get_close_matches(name, PARAMETERS, 1)
            raise ValueError('no parameter of an upload: %r%s' % (
                name, near and '; did you mean %r?' % near[0] or ''))
        header = PARAMETERS.get(name, name).lower()
        if name == 'Metadata':
            for word, text in value.items():
                plain = re.match(r'[\0-\x7f]*\Z', text)
                headers['%s-%s' % (header, word.lower())] = text if plain else Header(
                    text, 'utf-8', maxlinelen=sys.maxsize).encode()
        elif name == 'SSECustomerKey':
            value = value.encode() if isinstance(value, str) else value
            headers[header] = base64.b64encode(value).decode()
            headers[header + '-md5'] = base64.b64encode(md5(value).digest()).decode()
        elif isinstance(value, datetime.datetime):
            headers[header] = format_iso_date(value) if name != 'Expires' else format_datetime(
                value.astimezone(datetime.timezone.utc), usegmt=True)
        else:
            headers[header] = canonical_query(value.items()) if isinstance(value, dict) else (
                str(value).lower() if isinstance(value, bool) else str(value))
    return headers


def access_headers(headers: dict) -> dict:
    """Return those of `headers` that every request for the object needs: its own key, who pays.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html
    """
    return {name: value for name, value in headers.items() if name.lower().startswith((
        'x-amz-server-side-encryption-customer-', 'x-amz-request-payer', 'x-amz-expected-bucket'))}


#: S3's names for the parameters of a read -> those of its query.
READ_PARAMETERS = dict({'Response' + name: 'response-' + header
                        for name, header in PARAMETERS.items() if header[:6] != 'x-amz-'},
                       VersionId='versionId', PartNumber='partNumber')


def url_parameters(method: str, parameters: dict) -> tuple:
    """Return (query pairs, headers) of a URL's `parameters`, in S3's names or the query's own.

    With PUT those of an upload become headers. ValueError for other names.
    """
    uploads = Secret.of({name: value for name, value in parameters.items()
                         if method == 'PUT' and name in PARAMETERS})
    for name in parameters:
        if name not in uploads and name not in READ_PARAMETERS and not name[:1].islower():
            raise ValueError('no parameter of a URL for %s: %r' % (method, name))
    return [(READ_PARAMETERS.get(name, name), str(value)) for name, value in parameters.items()
            if name not in uploads and value is not None], object_headers(uploads)


class _Call:
    """One operation on its way: `attempt` signs and sends it, `mend` repairs what S3 names.

    It asks its Bucket anew in each attempt: a repair changes the Bucket, and the next one sees it.
    """

    #: What every answer of S3's has: a portal or a proxy that says 200 to everything has not.
    NAMED = {'stream': ('etag',), 'HEAD': ('etag', 'content-length'), 'PUT': ('etag',)}
    LEAST = 5  #: seconds for an answer's XML even when `deadline` is past: 0 is one attempt

    def __init__(self, bucket, method, key, query=(), headers=(), body=b'', expect='',
                 read=lambda answer: answer, new=False, check=False):
        # Trap: DELETE of '' would delete the bucket. These two are all that is asked of it.
        if (not key and expect not in ('ListBucketResult', 'DeleteResult')
                or ('uploadId', '') in query):  # Trap: Ceph takes it for the object itself
            raise ValueError('neither a key nor the id of an upload may be empty')
        self.headers = Headers(headers)
        self.headers['user-agent'] = 'minis3storage/' + __version__
        if new:
            self.headers['if-none-match'] = '*'
        if body or method in ('PUT', 'POST'):
            self.headers['content-length'] = str(len(body))
        digest = hashlib.sha256(body)
        if check:
            self.headers['x-amz-checksum-sha256'] = base64.b64encode(digest.digest()).decode()
        self.asked = query, self.headers, body, digest.hexdigest()
        self.bucket, self.method, self.key = bucket, method, key
        self.expect, self.read, self.until = expect, read, bucket.clock() + bucket.deadline
        # Who signed last, by which clock; (scheme, host, path) of a 307; the repairs left.
        self.signer, self.offset, self.detour = None, bucket.offset, None
        self.untried = {'region': True, 'clock': True, 'token': True, 'condition': new}

    def attempt(self) -> Any:
        """Return the Answer, unread for a 'stream', or the XML's root, through `read`."""
        bucket = self.bucket
        self.signer, self.offset = bucket._signer(), bucket.offset
        request = Request(self.method, *self.detour or bucket._location(self.key), *self.asked)
        headers = self.signer.sign(request, bucket.utcnow() + self.offset)
        answer = bucket.transport.send(request, headers)
        failed = answer.status not in (200, 204, 206)
        lacks = [name for name in self.NAMED.get(self.expect or self.method, ())
                 if not _is_printable(answer.headers.get(name, '\0'))]
        if not failed and not lacks and (self.expect == 'stream' or (
                not self.expect and answer.remaining == 0)):
            return self.read(answer)
        try:
            root = parse_xml(answer.read(XML_LIMIT if self.expect and not failed else ERROR_LIMIT,
                                         max(self.until - bucket.clock(), self.LEAST)))
        except (S3Error, ValueError) as error:  # it broke off, or was too much; it is no XML
            if isinstance(error, S3Error) and not failed and not lacks:
                raise
            root = ElementTree.Element(str(error))
        if failed or root.tag == 'Error':  # Fact: S3 may answer 200 and fail later
            raise self.error(answer, answer.status if failed else 500, root)
        # Fact: rclone names the answer to CreateMultipartUpload without "Result".
        fits = (root.tag in (self.expect, self.expect[:-len('Result')]) if self.expect else
                self.method != 'DELETE' or 'html' not in answer.headers.get('content-type', ''))
        try:
            if lacks or not fits:
                raise ValueError('without %s' % (lacks or self.expect or 'need'))
            return self.read(root if self.expect else answer)
        except (TypeError, ValueError) as error:
            raise S3Error(errno.EBADMSG, '%s answered %.40r, %s: is that S3?' % (
                request.host, root.tag, printable(error)), self.key or bucket.name) from None

    def error(self, answer: Answer, status: int, root: ElementTree.Element) -> S3Error:
        """Return the exception for `answer`, taken as one of `status`, with `root` in its body."""
        facts = {name: answer.headers[name] for name in ('date', 'location')
                 if name in answer.headers}
        facts['place'] = '%s://%s%s (%s)' % (*self.bucket.address(), self.bucket.style)
        region = answer.headers.get('x-amz-bucket-region') or root.findtext('Region') or ''
        if re.match(r'[a-z0-9][a-z0-9-]{0,63}\Z', region):
            facts['region'] = region
        for name, unit in (('retry-after', 1), ('x-amz-retry-after', 1000)):
            if re.match(r'\d{1,9}\Z', answer.headers.get(name, '')):
                facts['retry-after'] = int(answer.headers[name]) / unit
        # Printable and short, it goes to logs. Trap: elsewhere the body echoes StringToSign.
        code, message, number = map(printable, (
            root.findtext('Code'), root.findtext('Message') or answer.reason,
            answer.headers.get('x-amz-request-id') or root.findtext('RequestId')))
        about = self.bucket.name if code == 'NoSuchBucket' else self.key or self.bucket.name
        failure = answer_error(status, code, message, about, number, facts)
        failure.uncertain = answer.resent
        return failure

    def mend(self, error: S3Error) -> bool:
        """Repair what `error` names, each thing once a call, and tell whether that was done.

        The region, the clock, the token, a condition the server does not know, or where a 307
        points: no other Location is followed. A HEAD has no body and so no code.
        """
        bucket, signer, facts, code = self.bucket, self.signer, error.facts, error.code
        error.filename = error.filename or self.key or None  # Transport's know no key
        bare = error.status if self.method == 'HEAD' else 0
        region, served = facts.get('region'), parse_http_date(facts.get('date'))
        with contextlib.suppress(ValueError):  # what it names may be no region of AWS's, no host
            if (error.status in (301, 307, 400) and region not in (None, signer.region)
                    and self.untried.pop('region', False)):
                if bucket._endpoint is None:
                    aws_endpoint(region)
                logger.warning('bucket %s is in region %s, not %s: URLs fail until region_name '
                               '(AWS_S3_REGION_NAME) is set', bucket.name, region, signer.region)
                bucket.region = region
                return True
            # Compared with the offset it was signed with: another thread may have corrected it.
            offset = served - bucket.utcnow() if served else self.offset
            off = abs((offset - self.offset).total_seconds())
            if (off > 900 and bare == 403 or off > 1 and code == 'RequestTimeTooSkewed') and (
                    abs(offset) < datetime.timedelta(days=1) and self.untried.pop('clock', False)):
                bucket.offset = offset
                return True
            if (bare == 400 or code in ('ExpiredToken', 'TokenRefreshRequired')) and (
                    self.untried.pop('token', False)):
                return bucket.credentials.renew(signer.credentials)
            if error.status == 501 and self.untried.pop('condition', False):
                del self.headers['if-none-match']
                return True
            return error.status == 307 and not self.detour and self.mend_host(
                facts.get('location', ''))
        return False

    def mend_host(self, location: str) -> bool:
        """Go to `location` if it is this object's below the endpoint's domain, else False."""
        scheme, host, path = self.bucket._location(self.key)
        domain = split_endpoint(self.bucket.endpoint)[1]
        to = urllib.parse.urlsplit(location)
        target = split_endpoint('%s://%s' % (to.scheme, to.netloc))[1]
        # AWS sends from one of its hosts to another; elsewhere it is below the endpoint's.
        below = is_aws(target) if is_aws(host) else target.endswith('.' + domain)
        if (to.scheme == scheme and below and not re.match(r'[\d.]+(:|\Z)', domain)
                and self.key and to.path in (path, '/' + quote(self.key, '/'))):
            self.detour = scheme, target, to.path
        return self.detour is not None


class Bucket:
    """A bucket and S3's operations on it, in S3's words. Safe in threads and forks.

    `credentials` is a CredentialSource. `endpoint` is a URL, None for AWS's host of the region.
    `style` is auto, path, virtual or vanity (URLs only). Every operation signs its payload,
    retries what passes, corrects a wrong region and clock, and raises S3Error else. Keys are any
    text of 1 to 1,024 bytes of UTF-8; "." and ".." segments are a ValueError in path style and in
    URLs, since clients and proxies resolve them. Clock, sleep and randomness are arguments.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations.html
    """

    def __init__(self, name: str, credentials: CredentialSource, region='us-east-1', endpoint=None,
                 style='auto', transport=None, checksums=None, max_attempts=4, deadline=120,
                 utcnow=utcnow, clock=time.monotonic, sleep=time.sleep, rand=random.random,
                 public_endpoint=None):
        self.name, self.credentials, self.style = name, credentials, style
        self.region, self.offset = region, datetime.timedelta()  # corrected when S3 says so
        # Nobody named the region (set by S3Storage, for url()); conditions were answered 501.
        self.region_guessed = self._ignores_conditions = False
        self._endpoint, self._public_endpoint, self.deadline = endpoint, public_endpoint, deadline
        self.transport, self.checksums = transport or Transport(), checksums
        self.utcnow, self.clock = utcnow, clock
        self._retry = functools.partial(retry, max_attempts=max_attempts, deadline=deadline,
                                        clock=clock, sleep=sleep, rand=rand)
        self._signers = functools.lru_cache(maxsize=2)(Signer)  # of (credentials, region)
        self.address()

    @property
    def endpoint(self) -> str:
        """The endpoint in use, which follows a corrected region."""
        return regional(self._endpoint, self.region)

    def address(self) -> Address:
        """Return where requests go; vanity shapes URLs alone."""
        return address(self.name, self.endpoint, 'auto' if self.style == 'vanity' else self.style)

    def _location(self, key: str, public: bool = False) -> Tuple[str, str, str]:
        """Return (scheme, host, encoded path) of `key`; '' is the bucket, but not in public."""
        where = address(self.name, self._public_endpoint or self.endpoint,
                        self.style) if public else self.address()
        if public and not key or len(key.encode()) > KEY_LIMIT:
            raise ValueError('a key has 1 to %d bytes of UTF-8, not %.80r' % (KEY_LIMIT, key))
        if (public or where.prefix != '/') and not {'.', '..'}.isdisjoint(key.split('/')):
            raise ValueError('"." and ".." in %.80r would be resolved on the way' % key)
        return where.scheme, where.host, where.prefix + quote(key, '/')

    def _checks(self):
        """Tell whether S3 is to be sent, and asked for, checksums: AWS's own unless told."""
        return self.checksums or self.checksums is None and is_aws(self.address().host)

    def _signer(self):
        """Return the Signer of the credentials and the region as they are now."""
        return self._signers(self.credentials.get(), self.region)

    def now(self) -> datetime.datetime:
        """Return the time by the server's clock, as far as it told."""
        return self.utcnow() + self.offset

    def _call(self, *asked, **more):
        """Return what `_Call.attempt` does, after as many attempts as it takes."""
        call = _Call(self, *asked, **more)
        result = self._retry(call.attempt, split_endpoint(self.endpoint)[1], call.mend)
        self._ignores_conditions |= 'condition' not in call.untried  # all went well without one
        return result

    def head_object(self, key: str, headers=()) -> Message:
        """Return the answer's headers; get() ignores case. NoSuchKey also for a missing bucket.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
        """
        return self._call('HEAD', key, headers=headers).headers

    def get_object(self, key: str, start=None, stop=None, if_match='', headers=()) -> Answer:
        """Return an Answer to be read or closed; bytes `start` up to but not with `stop`.

        206 with Content-Range for a range, 200 where the server ignores it. S3Error with status
        416 when it begins past the end, which is everywhere in an empty object.
        PreconditionFailed if its ETag is not `if_match`.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
        """
        headers = Headers(headers)
        if start is not None or stop is not None:
            headers['range'] = 'bytes=%d-%s' % (start or 0, '' if stop is None else stop - 1)
        if if_match:
            headers.add('if-match', if_match)  # which looks at it
        if self._checks():
            headers['x-amz-checksum-mode'] = 'ENABLED'
        return self._call('GET', key, headers=headers, expect='stream')

    def put_object(self, key: str, body: bytes, headers=(), if_none_match=False) -> str:
        """Store `body`, at most 5 GiB, return its ETag, quoted.

        With `if_none_match` PreconditionFailed, a FileExistsError, if the key is taken, where
        the server honours the condition: some ignore it, so look first.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
        """
        put = functools.partial(self._call, 'PUT', key, (), headers, body, check=self._checks(),
                                read=lambda answer: answer.headers['etag'])
        return self._settled(put, if_none_match, key, body, '', headers)

    def _settled(self, write, if_none_match, key, hashed, suffix, headers=()):
        """Return the ETag that `write` does. A lost answer is settled by looking, never guessed.

        A repetition that finds the key taken, or no upload, may have met our own object: it has
        the ETag of `suffix` and the MD5 of `hashed`, and came, by the server's clock, after us.
        """
        started, head = self.clock(), {}
        try:
            return write(new=if_none_match and not self._ignores_conditions)
        except (NoSuchUpload, PreconditionFailed) as error:
            digest = md5(hashed) if error.uncertain and hashed is not None else None
            etag = digest and '"%s%s"' % (digest.hexdigest(), suffix)
            with contextlib.suppress(NoSuchKey):
                head = self.head_object(key, access_headers(Headers(headers))) if etag else head
            stored, served = map(parse_http_date, (head.get('last-modified'), head.get('date')))
            # HTTP's dates are whole seconds, rounded down: one for each.
            if (head.get('etag') != etag or not stored or not served
                    or (served - stored).total_seconds() > self.clock() - started + 2):
                raise
            return etag

    def delete_object(self, key: str) -> None:
        """Delete the object; no error if there is none.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html
        """
        self._call('DELETE', key)

    def delete_objects(self, keys: Iterable[str]) -> None:
        """Delete up to 1,000 objects in one request; no error for those that are not there.

        S3Error if some could not be deleted: it names the first, and how many. ValueError for
        keys that XML cannot hold.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
        """
        keys = list(keys)
        if not 1 <= len(keys) <= 1000 or not all(keys):
            raise ValueError('delete_objects takes 1 to 1,000 keys, none empty')
        body = ('<Delete><Quiet>true</Quiet>%s</Delete>' % ''.join(
            '<Object><Key>%s</Key></Object>' % xml_text(key) for key in keys)).encode()
        digest = md5(body)
        if digest is None:
            raise S3Error(errno.ENOSYS, 'delete_objects needs MD5, which this system forbids')
        headers = {'content-md5': base64.b64encode(digest.digest()).decode(),
                   'content-type': 'application/xml'}
        failed = self._call('POST', '', [('delete', '')], headers, body, 'DeleteResult',
                            lambda root: root.findall('Error'))
        if failed:
            code, key = failed[0].findtext('Code', ''), failed[0].findtext('Key', '')
            raise answer_error(403 if code == 'AccessDenied' else 409, code,
                               '%d of %d objects were not deleted' % (len(failed), len(keys)), key)

    def list_objects(self, prefix='', delimiter='', page_size=1000) -> Iterator[Listing]:
        """Yield the pages of a listing, each a Listing, in S3's order of UTF-8 bytes.

        Whole or an error: an S3Error for an answer that is none, a page that says there are more
        but not where, a token that comes again, a key outside `prefix`.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        """
        query = [('list-type', '2'), ('encoding-type', 'url'), ('max-keys', str(page_size)),
                 ('prefix', prefix), ('delimiter', delimiter)]
        token, seen, last, idle = '', set(), '', 0  # type: Any, set, str, int
        read = functools.partial(self._page, prefix, seen)
        while token is not None:
            asked = [pair for pair in query + [('continuation-token', token)] if pair[1]]
            page, token = self._call('GET', '', asked, expect='ListBucketResult', read=read)
            seen.add(token)
            # Fact: a page may be empty although there are more; a hundred in a row are no listing.
            newest = max(page.common_prefixes + [entry.key for entry in page.contents], default='')
            last, idle = (newest, 0) if newest > last else (last, idle + 1)
            if token and idle > 100:
                raise S3Error(errno.EBADMSG, 'a listing without end brings nothing new', prefix)
            yield page

    @staticmethod
    def _page(prefix, seen, root):
        """Return (Listing, continuation token or None) of a ListBucketResult; else ValueError."""
        # Fact: some servers leave keys as they are, and then do not say that they encoded them.
        encoded = root.findtext('EncodingType') == 'url'

        def text(element, tag):
            found = element.findtext(tag, '')
            found = urllib.parse.unquote_plus(found, errors='strict') if encoded else found
            if not found or not found.startswith(prefix):
                raise ValueError('%.80r is outside the prefix %.80r' % (found, prefix))
            return found

        contents = [Entry(
            text(entry, 'Key'), int(entry.findtext('Size')), entry.findtext('ETag', ''),
            entry.findtext('LastModified', '')) for entry in root.findall('Contents')]
        if not all(_iso_date(entry.modified) for entry in contents):
            raise ValueError('LastModified is no date')
        prefixes = [text(element, 'Prefix') for element in root.findall('CommonPrefixes')]
        more, token = root.findtext('IsTruncated'), root.findtext('NextContinuationToken') or None
        if more not in ('true', 'false', None) or (more == 'true') != bool(token) or token in seen:
            raise ValueError('truncated or not, and the token is missing or came again')
        return Listing(contents, prefixes), token

    def create_multipart_upload(self, key: str, headers=()) -> str:
        """Begin an upload in parts, return its id. It is there, and paid for, until ended.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
        """
        upload_id = self._call('POST', key, [('uploads', '')], headers, b'',
                               'InitiateMultipartUploadResult',
                               lambda root: root.findtext('UploadId'))
        if not upload_id:
            raise S3Error(errno.EBADMSG, 'an upload without an id', key)
        return upload_id

    def upload_part(self, key: str, upload_id: str, part_number: int, body: bytes,
                    headers=()) -> str:
        """Store part `part_number` (1 to 10,000) of an upload, return its ETag, quoted.

        Every part but the last has 5 MiB to 5 GiB. Sending a number again replaces it.
        NoSuchUpload, an S3Error, means the upload was completed or aborted.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html
        """
        if not 1 <= part_number <= 10000:
            raise ValueError('a part number is 1 to 10,000, not %r' % part_number)
        query = [('partNumber', str(part_number)), ('uploadId', upload_id)]
        return self._call('PUT', key, query, headers, body).headers['etag']

    def complete_multipart_upload(self, key: str, upload_id: str, etags: Iterable[str],
                                  if_none_match: bool = False) -> str:
        """Make the object of parts 1, 2, ... with these `etags`, return its ETag or ''.

        Fact: Ceph answers an empty ETag, and ignores the condition.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        """
        etags = list(etags)
        body = ('<CompleteMultipartUpload>%s</CompleteMultipartUpload>' % ''.join(
            '<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>' % (number, xml_text(etag))
            for number, etag in enumerate(etags, 1))).encode()
        known = re.match(r'("[0-9a-f]{32}")+\Z', ''.join(etags))
        hashed = bytes.fromhex(known.group().replace('"', '')) if known else None
        complete = functools.partial(
            self._call, 'POST', key, [('uploadId', upload_id)],
            {'content-type': 'application/xml'}, body, 'CompleteMultipartUploadResult',
            # Fact: Ceph repeats its answer without quotes.
            lambda root: re.sub('^"?([^"]+)"?$', r'"\1"', root.findtext('ETag', '')))
        return self._settled(complete, if_none_match, key, hashed, '-%d' % len(etags))

    def abort_multipart_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; no error if it is gone.

        Parts still on their way when it is sent may stay: join them first, then `list_parts`.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        """
        with contextlib.suppress(NoSuchUpload):
            self._call('DELETE', key, [('uploadId', upload_id)])

    def list_parts(self, key: str, upload_id: str) -> list:
        """Return [(part number, ETag, size)] of the first 1,000 parts; [] if there are none.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html
        """
        with contextlib.suppress(NoSuchUpload, NoSuchKey):  # Fact: Ceph answers NoSuchKey here
            return self._call(
                'GET', key, [('uploadId', upload_id)], expect='ListPartsResult',
                read=lambda root: [(int(part.findtext('PartNumber')), part.findtext('ETag'),
                                    int(part.findtext('Size'))) for part in root.findall('Part')])
        return []

    def presigned_url(self, method: str, key: str, expires: int, query=(), headers=(),
                      now: Optional[datetime.datetime] = None) -> str:
        """Return a URL for one `method` on `key` for `expires` seconds (1 to 604,800) from `now`.

        `query` may hold response-content-type and the like; `headers` must be sent as given.
        """
        request = Request(method, *self._location(key, public=True), query, headers, b'', UNSIGNED)
        return self._signer().presign(request, now or self.now(), expires)

    def presigned_post(self, key: str, expires: int, conditions=(), fields=None) -> dict:
        """Return {'url': ..., 'fields': ...} of a form that may POST a file to `key`.

        `fields` (acl, content-type, ...) are matched exactly; `conditions` are S3's own, such as
        ['content-length-range', 0, 1048576]. The form's ``file`` must be its last field.

        https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-post-example.html
        """
        url = self.public_url(key)[:-len(quote(key, '/'))]
        fields = dict(fields or {}, key=key)
        exact = dict(fields, bucket=self.name)
        conditions = [{name: exact[name]} for name in sorted(exact)] + list(conditions)
        signed = self._signer().post_policy(conditions, self.now(), expires)
        return {'url': url, 'fields': dict(fields, **signed)}

    def public_url(self, key: str, query: Iterable = ()) -> str:
        """Return the unsigned URL of `key`."""
        return ('%s://%s%s' % self._location(key, public=True)
                + ('?' + canonical_query(query) if query else ''))


# ---- 8. Files ----------------------------------------------------------------------------------
#
# Files of `io`, not of Django: buffering, lines and text come from the standard library.
#
# In a Reader `_advance` and `readall` decide which range comes next, `_fetch` gets it whole and
# compares it with its checksum, `_fetch_range` resumes what breaks off, and `_ask` sends one
# request and makes sure that the answer is of the object first opened.
#
# In a Writer `_send_part` sends what `write` gathered, `close` publishes, `discard` undoes. There
# are three ends: closed and stored; closed and nothing stored; lost, which the finalizer makes the
# second. Only `submit` starts a thread; each ends with its range, its part or, in collectstatic,
# its file.

FIRST_RANGE = 64 * 1024  #: bytes fetched at open: most files of a web site are whole in it
MAX_RESUMES = 5          #: times in a row without 64 KiB more that a body is resumed
MAX_PARTS = 10000        #: parts of an upload, S3's limit


def submit(threaded: bool, call: Callable, *args) -> Future:
    """Call in a thread of its own, or at once if not `threaded`; return a Future of the result."""
    future = Future()  # type: Future

    def run():
        try:
            future.set_result(call(*args))
        except BaseException as error:
            future.set_exception(error)
    try:
        threading.Thread(target=run, daemon=True).start() if threaded else run()
    except RuntimeError:  # Fact: no thread starts while the interpreter ends
        run()
    return future


#: Header -> the bytes whose base64 it holds. Fact: a value with a - is of parts, not of the body.
CHECKSUMS = {'x-amz-checksum-crc32': lambda body: zlib.crc32(body).to_bytes(4, 'big'),
             'x-amz-checksum-sha1': lambda body: hashlib.sha1(body).digest(),
             'x-amz-checksum-sha256': lambda body: hashlib.sha256(body).digest()}


def is_intact(body: bytes, headers: Message) -> bool:
    """Tell whether `body`, a whole object, has the checksums that came with it, if any.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
    """
    names = {name.lower() for name in headers.keys()}  # each get() would look at all of them
    for name in names.intersection(CHECKSUMS):
        digest = base64.b64encode(CHECKSUMS[name](body)).decode()
        if '-' not in headers[name] and headers[name] != digest:
            return False
    # Fact: an ETag is no MD5 under a key of KMS's or of the customer's, nor if made of parts.
    etag, kind = headers.get('etag', ''), 'x-amz-server-side-encryption'
    keyed = kind + '-customer-algorithm' in names or kind in names and headers[kind] != 'AES256'
    plain = re.match(r'"[0-9a-f]{32}"\Z', etag) and not keyed and md5(body)
    return not plain or plain.hexdigest() in etag


class Reader(io.RawIOBase):
    """An object as a raw file of `io`. It holds a position and one range, never a socket.

    The first range is fetched at once: NoSuchKey is raised here, and a small object is one
    request. Ranges double while reading goes on in order, from 64 KiB up to `part_size`, and
    fall back after a seek. One is in memory. Why none is fetched ahead: threads that take turns
    on Python's lock cost more than waiting for the first byte of a range does. `readall` works on
    `max_concurrency` connections, with so many ranges in memory; 1 starts no thread. All ranges
    are of one object, else ObjectChanged. What one answer holds whole is compared with its
    checksums. `size`, `etag` and `headers` (of the first answer) cost no further request.
    `headers` given are sent with each (SSE-C keys).
    """

    def __init__(self, bucket: Bucket, key: str, headers=(), part_size: int = 8 * 1024 ** 2,
                 max_concurrency: int = 4, first_range: int = FIRST_RANGE):
        super().__init__()
        self._bucket, self._key, self._asked = bucket, key, headers
        self._part_size, self._max_concurrency = part_size, max_concurrency
        # Where reading goes on; the range in memory: where it starts, its span, its bytes.
        self._position, self._start, self._span, self._held = 0, 0, first_range, b''
        self.size, self.etag, self.headers = None, '', None  # type: Any, str, Any
        self._held = self._fetch(0, first_range)

    def readable(self) -> bool:
        """Return True."""
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move without a request; past the end is allowed and reads as nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        if whence not in base or base[whence] + offset < 0:
            raise ValueError('cannot seek to %r from %r' % (offset, whence))
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the range in memory, or the next; 0 at the end."""
        offset = self._position - self._start
        if not 0 <= offset < len(self._held):
            self.flush()  # does nothing, but is a ValueError once closed
            if self._position >= self.size or not len(buffer):
                return 0
            self._advance(len(buffer))
            offset = self._position - self._start
        piece = self._held[offset:offset + len(buffer)]
        buffer[:len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _advance(self, wanted):
        """Bring the range of the position into memory, `wanted` bytes if they are more."""
        begin, held_stop = self._position, self._start + len(self._held)
        # Before the next one comes, not after: memory. What it lay in is used again.
        free, self._held = self._held, b''
        if begin == held_stop:
            self._span = min(2 * self._span, self._part_size)
        else:
            self._span = FIRST_RANGE
            # Near the end take its last 64 KiB: the directory of a zip file is read backwards.
            begin = min(begin, max(self.size - FIRST_RANGE, 0))
        span = max(self._span, self._position - begin + min(wanted, self._part_size))
        self._start, self._held = begin, self._fetch(begin, begin + span, free)

    def readall(self, begin: Optional[int] = None) -> bytes:
        """Return the rest of the object, or all from `begin` on."""
        self.flush()
        body, ranges = io.BytesIO(), collections.deque()  # type: io.BytesIO, collections.deque
        begin = self._position if begin is None else begin
        if self._start <= begin < self._start + len(self._held):
            begin += body.write(memoryview(self._held)[begin - self._start:])
        self._held = b''
        threaded = self._max_concurrency > 1 and self.size - begin > self._part_size
        for begin in range(begin, self.size, self._part_size):
            if len(ranges) == (self._max_concurrency if threaded else 1):
                body.write(ranges.popleft().result())
            ranges.append(submit(threaded, self._fetch, begin, begin + self._part_size))
        while ranges:
            body.write(ranges.popleft().result())
        self._position = max(self._position, self.size)
        return body.getvalue()  # Fact: BytesIO hands its buffer over without a copy

    def close(self) -> None:
        """Let go of what is in memory: a FieldFile keeps its file when that is closed."""
        self._held = b''
        super().close()

    def _fetch(self, begin, stop, free=b''):
        """Return the bytes from `begin` to before `stop`, fewer only at the object's end.

        The whole object is compared with its checksums, and fetched once more if it differs.
        `free` is memory to put them in, if it is as large.
        """
        for _ in range(2):
            body = self._fetch_range(begin, stop, free)
            if (len(body) < self.size or self._bucket.checksums is False
                    or is_intact(body, self.headers)):
                return body
        raise S3Error(errno.EBADMSG, 'S3 sent other bytes than its checksum is of, twice; '
                      'checksums=False (AWS_S3_CHECKSUMS) reads them', self._key)

    def _fetch_range(self, begin, stop, free):
        """Return the same without a look at checksums; a body that breaks off is resumed."""
        body, done, broken = None, 0, 0
        while True:
            answer, skip = self._ask(begin + done, stop)
            if body is None:
                length = max(min(stop, self.size) - begin, 0)
                body = free if len(free) == length else memoryview(bytearray(length))
            before, waste = done, memoryview(bytearray(min(skip, SLICE)))
            try:
                while skip:
                    skip -= answer.readinto(waste[:skip])
                while done < len(body):
                    count = answer.readinto(body[done:])
                    if not count:
                        raise Unreachable(errno.ECONNRESET, 'the range ended early', self._key)
                    done += count
                return body
            except Unreachable:
                broken = 1 if done - before >= FIRST_RANGE else broken + 1
                if broken > MAX_RESUMES:
                    raise
            finally:
                answer.close()

    def _ask(self, begin, stop):
        """Return (Answer, bytes of its body before byte `begin` of the object first opened)."""
        try:
            answer = self._bucket.get_object(self._key, begin, stop, self.etag, self._asked)
        except S3Error as error:
            if error.status == 412 or error.status == 416 and self.size is not None:
                raise self._changed() from None
            if error.status != 416:
                raise
            # Fact: any range of an empty object is 416, and without its headers.
            answer = self._bucket.get_object(self._key, headers=self._asked)
        etag = answer.headers.get('etag', '')
        found = re.match(r'bytes (\d+)-\d+/(\d+)\Z', answer.headers.get('content-range', ''))
        if found and int(found.group(1)) == begin:  # Fact: rclone says 200, not 206
            size, skip = int(found.group(2)), 0
        elif not found and answer.status == 200 and answer.remaining is not None:
            size, skip = answer.remaining, begin  # Fact: some servers ignore Range
        else:
            answer.close()
            raise S3Error(errno.EBADMSG, 'asked for bytes from %d, S3 answered %d %s' % (
                begin, answer.status, answer.headers.get('content-range', '')), self._key)
        if self.size is None:
            self.size, self.etag, self.headers = size, etag, answer.headers
        elif (size, etag) != (self.size, self.etag):  # Fact: some servers ignore If-Match
            answer.close()
            raise self._changed()
        return answer, skip

    def _changed(self):
        return ObjectChanged(errno.ESTALE, 'the object was replaced while it was read', self._key)


class Gunzip(io.RawIOBase):
    """A Reader of an object whose Content-Encoding is gzip as one file of the decoded bytes.

    `size` is in the metadata that a Writer leaves, else found by decoding. Beyond 64 MiB and 100
    times the stored bytes it is an S3Error: `read()` of a bomb holds no more. Seeking backwards
    decodes from the beginning. Trap: a `read()` that failed goes on where it failed; seek first.
    """

    def __init__(self, reader: Reader):
        super().__init__()
        self._reader, self._decoded = reader, gzip.GzipFile(fileobj=reader, mode='rb')
        self._limit = max(64 * 1024 ** 2, 100 * reader.size)
        size = reader.headers.get('x-amz-meta-uncompressed-size', '')
        self._size = int(size) if re.match(r'\d{1,15}\Z', size) else None

    readable = seekable = Reader.readable

    def close(self) -> None:
        """Close the Reader too."""
        self._reader.close()
        super().close()

    @property
    def size(self) -> int:
        """Bytes when decoded."""
        if self._size is None:
            position, self._size = self.tell(), self.seek(self._limit + 1)
            self.seek(position)
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a decoded position; past the end is the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._decoded.tell(),
                io.SEEK_END: whence == io.SEEK_END and self.size}
        if whence not in base or base[whence] + offset < 0:
            raise ValueError('cannot seek to %r from %r' % (offset, whence))
        return self._checked(self._decoded.seek, min(base[whence] + offset, self._limit + 1))

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with decoded bytes; 0 at the end."""
        return self._checked(self._decoded.readinto, buffer)

    def _checked(self, call, argument):
        """Return what `call` does; S3Error for what is no gzip, or grows beyond the limit."""
        try:
            result = call(argument)
        except S3Error:
            raise
        except (EOFError, OSError, zlib.error) as error:
            raise S3Error(errno.EBADMSG, 'not the gzip it says it is: %s' % error) from None
        if self._decoded.tell() > self._limit:
            raise S3Error(errno.EFBIG, 'more than %d bytes when decoded' % self._limit)
        return result


def part_length(number: int, sent: int, part_size: int, size: Optional[int] = None) -> int:
    """Return how long part `number` (from 1) is to be, when `sent` bytes went before it.

    `size` is the object's if it is known: then no more than 10,000 parts come of it, up to
    S3's 5 GiB a part. Beyond it, or if it is not known, parts grow every thousand.
    """
    if size is not None and sent < size:
        return min(max(part_size, -(-size // MAX_PARTS)), 5 * 1024 ** 3)
    return min(part_size * (1 + (number - 1) // 1000), 5 * 1024 ** 3)


#: Writers with an upload begun; a set of weak references, so that a dropped one is finalized.
_unfinished = weakref.WeakSet()  # type: weakref.WeakSet
atexit.register(lambda: [writer.discard() for writer in list(_unfinished)])


class Writer(io.RawIOBase):
    """A new object as a raw file of `io`: whole or absent.

    One PUT if everything fits in `part_size`, else an upload in parts, up to `max_concurrency`
    at once; so many and one more are in memory, 1 starts no thread. Nothing is visible before
    `close()`. `discard()`, an exception inside `with`, a failed write or close, or dropping the
    writer (a ResourceWarning) end the upload and leave what was there. It belongs to the process
    that made it. `size` is how much will come, if that is known. `exclusive` asks S3 to refuse a
    key that is taken: PreconditionFailed, a FileExistsError, at close. `compress` stores what
    fits in one PUT as gzip, without a time in it: equal content has equal ETags.
    """

    def __init__(self, bucket: Bucket, key: str, headers=(), part_size: int = 8 * 1024 ** 2,
                 max_concurrency: int = 4, exclusive: bool = False, size: Optional[int] = None,
                 compress: bool = False):
        super().__init__()
        self._bucket, self._key, self._pid = bucket, key, os.getpid()
        self._part_size, self._max_concurrency, self._size = part_size, max_concurrency, size
        self._exclusive, self._compress, self._upload_id = exclusive, compress, ''
        # Of the parts: ETags of those that are stored, (Future of one, buffer) of those on their
        # way, how many bytes they have, what is gathered for the next, and how much it may be.
        self._etags, self._sending, self._sent = [], collections.deque(), 0  # type: list, Any, int
        self._buffer, self._filled, self._length = bytearray(), 0, part_length(
            1, 0, part_size, size)
        # Last: what it refuses leaves a writer that can still be finalized.
        self._headers = Headers(headers)

    writable = Reader.readable

    def readinto(self, buffer: Any) -> int:
        """Raise UnsupportedOperation."""
        raise io.UnsupportedOperation('open for writing, not readable')

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._sent + self._filled

    def write(self, data: Any) -> int:
        """Take all of `data`, return its length in bytes. An error discards the whole object."""
        self.flush()  # a ValueError once closed
        rest = data = memoryview(data).cast('B')
        try:
            while rest:
                if self._filled == self._length:
                    self._send_part()
                piece = rest[:self._length - self._filled]
                self._buffer[self._filled:self._filled + len(piece)] = piece
                self._filled += len(piece)
                rest = rest[len(piece):]
        except BaseException:
            self.discard()
            raise
        return len(data)

    def _send_part(self):
        """Send the buffer as a part, once fewer than `max_concurrency` others are on their way."""
        if not self._upload_id:
            self._upload_id = self._bucket.create_multipart_upload(self._key, self._headers)
            _unfinished.add(self)
        number, free = len(self._etags) + len(self._sending) + 1, bytearray()
        if number > MAX_PARTS:
            raise S3Error(errno.EFBIG, 'more than %d parts: set part_size' % MAX_PARTS, self._key)
        if len(self._sending) == self._max_concurrency:
            self._etags.append(self._sending[0][0].result())  # till then discard() waits for it
            free = self._sending.popleft()[1]
        part = submit(self._max_concurrency > 1, self._bucket.upload_part, self._key,
                      self._upload_id, number, memoryview(self._buffer)[:self._filled],
                      access_headers(self._headers))
        self._sending.append((part, self._buffer))
        self._sent += self._filled
        self._length = part_length(number + 1, self._sent, self._part_size, self._size)
        # A new buffer would cost page faults, a tenth of the time of an upload.
        self._buffer, self._filled = free if len(free) == self._length else bytearray(), 0
        if self._max_concurrency == 1:
            part.result()  # now, and not with the next part

    def close(self) -> None:
        """Store the object, once. If that fails nothing is stored, and the file is closed."""
        if self.closed:
            return
        try:
            if os.getpid() != self._pid:
                raise ValueError('a file is closed by the process that opened it, or not stored')
            if self._upload_id:
                self._send_part()
                etags = self._etags + [part.result() for part, _ in self._sending]
                self._bucket.complete_multipart_upload(
                    self._key, self._upload_id, etags, self._exclusive)
                self._upload_id = ''
            else:
                body = memoryview(self._buffer)  # type: Any
                if self._compress:
                    self._headers.update({'content-encoding': 'gzip',
                                          'x-amz-meta-uncompressed-size': str(len(body))})
                    packer = zlib.compressobj(wbits=31)  # a gzip file, its time 0
                    body = packer.compress(body) + packer.flush()
                self._bucket.put_object(self._key, body, self._headers, self._exclusive)
        finally:
            self.discard()

    def discard(self) -> None:
        """Close without storing anything: parts on their way are awaited, the upload aborted."""
        self._sent, self._filled, self._buffer = self.tell(), 0, bytearray()
        super().close()
        if self._upload_id and os.getpid() == self._pid:
            # Seconds: one may be waiting for us, as a finalizer's thread.
            wait([part for part, _ in self._sending], 300)
            try:
                self._bucket.abort_multipart_upload(self._key, self._upload_id)
                if self._bucket.list_parts(self._key, self._upload_id):
                    self._bucket.abort_multipart_upload(self._key, self._upload_id)
            except S3Error as error:  # the exception that brought us here is the one to be seen
                logger.warning('upload %s of %s may be left behind: %s', self._upload_id,
                               self._key, error)
            self._upload_id = ''
        self._sending.clear()

    def __exit__(self, exc_type, exc, traceback):
        self.close() if exc_type is None else self.discard()

    # Trap: io's own finalizer calls close(), and would publish what a lost file held.
    def __del__(self):
        if self._upload_id or not self.closed:  # closed: where discard() was interrupted
            self.discard()
            if os.getpid() == self._pid:
                warnings.warn('%s was neither closed nor discarded: nothing is stored' % self._key,
                              ResourceWarning, stacklevel=2, source=self)


# ================================== the Django line =============================================

import django  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.staticfiles.storage import ManifestFilesMixin, staticfiles_storage  # noqa
from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation  # noqa: E402
from django.core.files import storage as files  # noqa: E402
from django.core.files.base import ContentFile, File  # noqa: E402
from django.core.files.storage import Storage, default_storage  # noqa: E402
from django.core.signals import setting_changed  # noqa: E402
from django.utils import timezone  # noqa: E402

# ---- 9. Options --------------------------------------------------------------------------------
#
# First the converters: each takes what was written, in Python, in settings or in the environment,
# and returns the value or raises a ValueError that says what is wanted. Then Option, which knows
# where a value may stand, and Options, where each is declared. To add one, declare it with its
# comment there (README's table, `check`), and name it in BucketOptions if a Bucket is made of it.


def _text(value):
    """Return text; a path is taken as text too."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError('text is wanted, not %s' % type(value).__name__)
    return os.fspath(value)


def _flag(value):
    """Return a bool; the words are those of environment variables."""
    text = str(value).lower()
    if text not in ('1', 'true', 'yes', 'on', '0', 'false', 'no', 'off'):
        raise ValueError('True or False is wanted, not %.80r' % (value,))
    return text in ('1', 'true', 'yes', 'on')


def _pairs(value):
    """Return a mapping as sorted pairs, which can be compared and hashed."""
    value = Secret.of(dict(value)) if hasattr(value, 'items') else {'': ''}
    if not all(re.match(r'(https?://)?([^/]*@)?(\[[^/@]+\]|[^/@:]+)(:\d+)?/?\Z', str(url))
               for url in value.values()):
        raise ValueError('like {"https": "http://user:password@proxy:3128"}, percent-encoded')
    return tuple(sorted((name, Secret.of(url)) for name, url in value.items()))


def _endpoint(value):
    """Return an endpoint's URL."""
    split_endpoint(_text(value))
    return value


def _region(value):
    """Return a region's name."""
    if not is_region(_text(value)):
        raise ValueError('like eu-west-1 is wanted, no blanks; not %.80r' % value)
    return value


def _words(value):
    """Return a tuple of texts."""
    return tuple(map(_text, [value] if isinstance(value, str) else value))


def _parameters(value):
    object_headers(value)  # it checks the names
    return Secret.of(dict(value))


def _function(value):
    """Return False, or a callable that is the value itself: it is not asked for it."""
    if value is not False and not callable(value):
        raise ValueError('a callable is wanted, not %.80r' % (value,))
    return value


def _signature(value):
    """Return nothing: there is one signature."""
    if value != 's3v4':
        logger.warning('AWS_S3_SIGNATURE_VERSION %.80r: only Signature Version 4 is made', value)


def _refused(value):
    """Refuse boto's Config objects."""
    raise ValueError('boto\'s configuration is not used: set part_size, max_concurrency, '
                     'connect_timeout, read_timeout, max_attempts or proxies')


def _number(least, most, kind=int):
    """Return a converter to a number from `least` to `most`."""
    def number(value):
        found = kind(value)
        if isinstance(value, bool) or found != float(value) or not least <= found <= most:
            raise ValueError('a number from %s to %s is wanted, not %r' % (least, most, value))
        return found
    return number


def _prefix(value):
    """Return a location as a prefix of keys: '' or with a slash at its end."""
    text = _text(value).rstrip('/')
    if value and (not {'', '.', '..'}.isdisjoint(text.split('/')) or '\\' in text):
        raise ValueError('a location is like "media" or "a/b", relative; not %r' % value)
    return text and text + '/'


def _style(value):
    """Return the addressing style of any of its names."""
    value = value.lower() if isinstance(value, str) else value
    if value not in STYLES:
        raise ValueError('path, virtual, vanity or auto is wanted, not %.80r' % (value,))
    return STYLES[value]


def _domain(value):
    """Return a host for URLs."""
    if re.search(r'//|[/?#]\Z', _text(value)):
        raise ValueError('a host like cdn.example.com is wanted, no scheme; not %.80r' % value)
    return value


def _verify(value):
    """Return an SSLContext, False, a CA file's path, or None for True."""
    if value is False or hasattr(value, 'wrap_socket'):  # Why not its class: ssl is Transport's
        return value
    return None if value is True else _text(value)


class Option:
    """One setting of a storage, declared once: a non-data descriptor.

    Looked up in this order: the constructor's argument (OPTIONS), a subclass's attribute,
    property or method, the Django `settings` in their order, the variables of `environ`, the
    default. In the first two None, and False unless `keeps_false`, mean the default: they switch
    a global setting off. None in settings and an empty variable mean "not set". A callable is
    asked on each use. What is set on an instance counts like its constructor's argument.
    """

    def __init__(self, default, settings, convert=_text, environ='', aliases='', secret=False,
                 keeps_false=False):
        self.default, self.convert = default, convert
        self.settings, self.environ, self.aliases = map(str.split, (settings, environ, aliases))
        self.secret, self.keeps_false = secret, keeps_false or convert is _flag

    def __set_name__(self, owner, name):
        self.name = name  # Python tells it: an option is named once

    def __get__(self, storage, owner=None):
        if storage is None:
            return self
        config, asked, _ = storage._resolve()
        return self.ask(storage) if self.name in asked else getattr(config, self.name)

    def find(self, storage: 'S3Storage') -> tuple:
        """Return (value as written, where: constructor, subclass, settings, ... or default)."""
        if self.name in storage._options:
            return storage._options[self.name], 'constructor'
        for cls in type(storage).__mro__:
            for name in [self.name] + self.aliases:
                if not isinstance(vars(cls).get(name, self), Option):
                    return self.veil(vars(cls)[name]), 'subclass'
        for name in self.settings:
            if getattr(settings, name, None) is not None:
                return self.veil(getattr(settings, name)), 'settings'
        for name in self.environ:
            if os.environ.get(name):
                return self.veil(os.environ[name]), 'environment'
        return None, 'default'

    def veil(self, value: Any) -> Any:
        """Return `value` so that its repr tells no secret: locals end up in error reports."""
        return Secret.of(value) if self.secret or isinstance(value, dict) else value

    def ask(self, storage: 'S3Storage') -> Any:
        """Return the value of a property, method or other callable, cleaned."""
        value, where = self.find(storage)
        if where == 'subclass' and hasattr(value, '__get__'):
            value = value.__get__(storage, type(storage))  # as the class itself would bind it
        value = value() if callable(value) and self.convert is not _function else value
        value = self.veil(value)
        return self.clean(storage, value)

    def clean(self, storage: 'S3Storage', value: Any) -> Any:
        """Return `value` converted and checked; ImproperlyConfigured says what is wanted."""
        default = storage._defaults.get(self.name, self.default)
        if value is None or value is default or value is False and not self.keeps_false:
            return default
        try:
            return self.convert(value)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ImproperlyConfigured('%s (%s): %s' % (
                self.name, ', '.join(self.settings), error)) from None


_generation = [0]  #: goes up with each change of a setting


def _forget_settings(**_):
    """Let every storage resolve its options again; override_settings comes here."""
    _generation[0] += 1


setting_changed.connect(_forget_settings, dispatch_uid=__name__)


class Options:
    """The options of a storage. README.rst's table is made of what stands here."""

    #: The bucket; required when it is first used.
    bucket_name = Option(None, 'AWS_STORAGE_BUCKET_NAME AWS_S3_BUCKET_NAME', aliases='bucket')
    #: Access key; without one AWS's own places are asked, see Credentials.
    access_key = Option(None, 'AWS_S3_ACCESS_KEY_ID AWS_ACCESS_KEY_ID', secret=True)
    #: Secret key, from the same place as the access key.
    secret_key = Option(None, 'AWS_S3_SECRET_ACCESS_KEY AWS_SECRET_ACCESS_KEY', secret=True)
    #: Session token, only from where the keys came from.
    security_token = Option(None, 'AWS_SESSION_TOKEN AWS_SECURITY_TOKEN', aliases='session_token',
        secret=True)
    #: Callable that returns Credentials, asked again when they expire; False: anonymous.
    credentials = Option(None, 'AWS_S3_CREDENTIALS', _function, keeps_false=True)
    #: Profile in AWS's files to take keys and region from, and from nowhere else.
    session_profile = Option(None, 'AWS_S3_SESSION_PROFILE')
    #: Region; else the one in endpoint_url, else the profile's, else us-east-1.
    region_name = Option(None, 'AWS_S3_REGION_NAME AWS_REGION', _region,
        environ='AWS_REGION AWS_DEFAULT_REGION')
    #: Where S3 is, if not at AWS: http(s)://host[:port][/path].
    endpoint_url = Option(None, 'AWS_S3_ENDPOINT_URL', _endpoint,
        environ='AWS_ENDPOINT_URL_S3 AWS_ENDPOINT_URL')
    #: Where browsers find S3, if elsewhere than this server does: what `url()` signs for.
    public_endpoint_url = Option(None, 'AWS_S3_PUBLIC_ENDPOINT_URL', _endpoint)
    #: auto, path, virtual (subdomain) or vanity (for url() only); or CallingFormat's names, or 1,
    #: 2, 3.
    addressing_style = Option('auto',
        'AWS_S3_ADDRESSING_STYLE AWS_CALLING_FORMAT AWS_S3_CALLING_FORMAT', _style,
        aliases='calling_format')
    #: False: http to AWS. The scheme of an endpoint_url wins.
    use_ssl = Option(True, 'AWS_S3_USE_SSL', _flag)
    #: None: the system's CAs; a CA file, an ssl.SSLContext, or False: insecure.
    verify = Option(None, 'AWS_S3_VERIFY', _verify, environ='AWS_CA_BUNDLE', keeps_false=True)
    #: {"https": url, ...}; None: the environment's. no_proxy is honoured.
    proxies = Option(None, 'AWS_S3_PROXIES', _pairs, secret=True)
    #: Prefix of all keys, such as "media".
    location = Option('', 'AWS_LOCATION AWS_S3_KEY_PREFIX AWS_BUCKET_PREFIX', _prefix)
    #: True: save() replaces an object; False: it takes another name.
    file_overwrite = Option(False, 'AWS_S3_FILE_OVERWRITE', _flag)
    #: Canned ACL of uploads; None: none is sent.
    default_acl = Option(None, 'AWS_DEFAULT_ACL', aliases='acl')
    #: HTTP headers stored with every upload, such as Cache-Control.
    headers = Option({}, 'AWS_HEADERS', Headers)
    #: The same in boto's names, such as CacheControl, Metadata, StorageClass; they win.
    object_parameters = Option({}, 'AWS_S3_OBJECT_PARAMETERS', _parameters)
    #: True: what is of gzip_content_types and fits one part is stored compressed, and what is
    #: stored with Content-Encoding: gzip is read decoded.
    gzip = Option(False, 'AWS_IS_GZIPPED AWS_S3_GZIP', _flag)
    #: Content types that are worth it.
    gzip_content_types = Option(('text/css', 'text/javascript', 'application/javascript',
        'application/x-javascript', 'image/svg+xml'), 'GZIP_CONTENT_TYPES', _words)
    #: False: url() is unsigned.
    querystring_auth = Option(True, 'AWS_QUERYSTRING_AUTH AWS_QUERYSTRING_ACTIVE', _flag)
    #: Seconds a signed URL lasts, 1 to 604,800.
    querystring_expire = Option(3600, 'AWS_QUERYSTRING_EXPIRE', _number(1, MAX_EXPIRES))
    #: Seconds for which url() stays the same, so that browsers cache; added to the expiry.
    querystring_window = Option(0, 'AWS_QUERYSTRING_WINDOW', _number(0, MAX_EXPIRES - 1))
    #: Host for url(), such as a CDN's; not signed by S3's rules.
    custom_domain = Option(None, 'AWS_S3_CUSTOM_DOMAIN', _domain)
    #: Scheme for custom_domain.
    url_protocol = Option('https:', 'AWS_S3_URL_PROTOCOL')
    #: Callable (url, second since 1970 at which it ends) that signs URLs of custom_domain.
    cloudfront_signer = Option(None, 'AWS_CLOUDFRONT_SIGNER', _function)
    #: For a cloudfront_signer to read; without one `url()` of custom_domain is an error.
    cloudfront_key = Option(None, 'AWS_CLOUDFRONT_KEY', secret=True)
    #: The same.
    cloudfront_key_id = Option(None, 'AWS_CLOUDFRONT_KEY_ID')
    #: Bytes of a part, 5 MiB to 5 GiB: more is uploaded in parts, and read in such ranges.
    part_size = Option(8 * 1024 ** 2, 'AWS_S3_PART_SIZE AWS_S3_FILE_BUFFER_SIZE',
        _number(5 * 1024 ** 2, 5 * 1024 ** 3))
    #: Connections of one file at most, and parts of part_size in memory; 1 starts no thread.
    #: Static storages: 16, for one collectstatic.
    max_concurrency = Option(4, 'AWS_S3_MAX_CONCURRENCY', _number(1, 100))
    #: False: max_concurrency is 1.
    use_threads = Option(True, 'AWS_S3_USE_THREADS', _flag)
    #: Seconds for connecting to one address, TLS and proxy included.
    connect_timeout = Option(10, 'AWS_S3_CONNECT_TIMEOUT', _number(0.001, 3600, float))
    #: Seconds for each read, and for each 256 KiB sent.
    read_timeout = Option(60, 'AWS_S3_READ_TIMEOUT', _number(0.001, 3600, float))
    #: Seconds after which no new attempt of a request starts.
    deadline = Option(120, 'AWS_S3_DEADLINE', _number(0, 86400, float))
    #: Attempts of one request, the first included.
    max_attempts = Option(4, 'AWS_S3_MAX_ATTEMPTS', _number(1, 20), environ='AWS_MAX_ATTEMPTS')
    #: None: SHA-256 goes with uploads to AWS; True: to any server; False: neither sent nor
    #: compared when reading.
    checksums = Option(None, 'AWS_S3_CHECKSUMS', _flag)
    #: Accepted: nothing changes. Only Version 4 is made.
    signature_version = Option(None, 'AWS_S3_SIGNATURE_VERSION', _signature)
    #: Accepted: nothing changes.
    file_name_charset = Option(None, 'AWS_S3_FILE_NAME_CHARSET')
    #: Accepted: nothing changes. See part_size.
    max_memory_size = Option(None, 'AWS_S3_MAX_MEMORY_SIZE', int)
    #: Refused, names what to set instead.
    transfer_config = Option(None, 'AWS_S3_TRANSFER_CONFIG', _refused)
    #: Refused as well.
    client_config = Option(None, 'AWS_S3_CLIENT_CONFIG', _refused)


DECLARED = {name: option for name, option in vars(Options).items() if isinstance(option, Option)}
Config = collections.namedtuple('Config', list(DECLARED))  # type: ignore  #: option -> value


# ---- 10. Storages ------------------------------------------------------------------------------
#
# Django's dialect on top of S3's: a `name` is Django's, relative to the location; a `key` is S3's,
# complete. They meet in S3Storage._key alone. A storage holds what its constructor was given and,
# while the settings stay, the Config made of it and the Bucket made of that. It remembers nothing
# of an object from one call to the next, but in a run of collectstatic.


def _no_boto(self, name):
    """Say what stands in for boto's objects."""
    if hasattr(type(self), name):  # Trap: here come the AttributeErrors of properties as well
        return object.__getattribute__(self, name)
    instead = {'connection': 'Bucket', 'bucket': 'bucket_name or Bucket', 'obj': 'size, and '
               'url() or get_modified_time() of the storage'}.get(name)
    raise AttributeError('%s has no %r%s' % (
        type(self).__name__, name, instead and ': there is no boto here, use ' + instead or ''))


class S3File(File):
    """A file on S3: Django's File over a Reader or a Writer.

    Modes r, rt (text), rb; w, wt, wb; x, xt, xb, which refuse a name that is taken with a
    FileExistsError. Text is UTF-8, read with universal newlines. Reading: a missing object is a
    FileNotFoundError at once, `size` costs no request. Writing: nothing is stored before
    close(), nor when an exception leaves the `with` block. `open(mode)` opens it again.
    """

    __getattr__ = _no_boto

    def __init__(self, storage, name: str, mode: str = 'rb'):
        super().__init__(None, name)
        self._storage, self.file = storage, None  # type: Any, Any
        self._open_as(mode)

    def _open_as(self, mode):
        """Open the object anew; what was open before is closed already."""
        if not re.match('[rwx][bt]?\\Z', mode):
            raise ValueError('mode %r: files on S3 are opened with r, w or x, and b or t; to '
                             'change or extend one, read it and write it anew' % (mode,))
        if mode[0] == 'r':
            storage = self._storage
            self._raw = Reader(storage._bucket(), storage._key(self.name), access_headers(
                storage._headers(self.name)), *storage._sizes(), storage._first_range)
            if storage.config.gzip and self._raw.headers.get('content-encoding') == 'gzip':
                self._raw = Gunzip(self._raw)
            self.file = io.BufferedReader(self._raw, FIRST_RANGE)
            if mode != 'rb':
                self.file = io.TextIOWrapper(self.file, encoding='utf-8')
        else:
            if mode[0] == 'x' and self._storage.exists(self.name):
                raise FileExistsError(errno.EEXIST, 'There is an object already', self.name)
            self.file = self._raw = self._storage._writer(self.name, exclusive=mode[0] == 'x')
        self.mode = mode

    @property
    def size(self) -> int:
        """Bytes: of the object when reading, written so far when writing."""
        return self._raw.size if self.mode[0] == 'r' else self._raw.tell()

    def read(self, size: Optional[int] = -1) -> Any:
        """Return up to `size` bytes or characters, all that are left for -1 or None."""
        # What it has in its buffer a BufferedReader copies, with all that comes after it.
        if (self.mode != 'rb' or size is not None and size >= 0 or isinstance(self._raw, Gunzip)
                or self._raw.tell() == 0):
            return self.file.read(size)
        position = self.file.tell()
        body = self._raw.readall(position)
        self.file.seek(position + len(body))
        return body

    def open(self, mode=None, *args, **kwargs) -> 'S3File':
        """Go to the beginning; with a mode, or once closed, open again. Return the file."""
        if self.closed or mode not in (None, self.mode) or self.mode[0] != 'r':
            self.close()
            self._open_as(mode or self.mode)
        else:
            self.seek(0)
        return self

    def write(self, content: Any) -> int:
        """Write str in text mode, bytes-like in binary; return how much was taken."""
        text = isinstance(content, str)
        if text is ('b' in self.mode):
            raise TypeError('mode %r takes %s' % (self.mode, 'bytes' if text else 'str'))
        taken = self.file.write(content.encode() if text else content)
        return len(content) if text else taken

    def writelines(self, lines: Iterable) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def __exit__(self, exc_type, exc, traceback):
        if exc_type is not None and self.mode[0] != 'r':
            self._raw.discard()
        self.close()


S3StorageFile = S3File  #: the name in the 2008 file

#: Types of the web that `mimetypes` lacks, or has otherwise, in some version of Python.
CONTENT_TYPES = {
    '.avif': 'image/avif', '.css': 'text/css', '.js': 'text/javascript', '.md': 'text/markdown',
    '.json': 'application/json', '.map': 'application/json', '.mjs': 'text/javascript',
    '.otf': 'font/otf', '.svg': 'image/svg+xml', '.ttf': 'font/ttf', '.wasm': 'application/wasm',
    '.webmanifest': 'application/manifest+json', '.webp': 'image/webp', '.woff': 'font/woff',
    '.woff2': 'font/woff2'}

#: Most names: nothing in them is to be cleaned. Gives 3 us of an exists().
_is_plain = re.compile(r'[\w-][\w.-]*(/[\w-][\w.-]*)*\Z', re.ASCII).match
#: Names and aliases -> Option.
_NAMED = {name: option for option in DECLARED.values() for name in [option.name] + option.aliases}


def _veiled(arguments):
    """Return `arguments` with what is or may be secret as Secret."""
    return {name: _NAMED[name].veil(value) if name in _NAMED else Secret.of(value)
            for name, value in arguments.items()}


def _size(content):
    """Return the bytes of `content`, 0 if it does not tell: what cannot seek raises OSError."""
    try:
        return int(content.size)
    except (AttributeError, TypeError, ValueError, OSError):
        return 0


#: The options that make two configurations talk to the same place in the same way.
BucketOptions = collections.namedtuple(
    'BucketOptions', 'bucket_name access_key secret_key security_token credentials '
    'session_profile region_name endpoint_url public_endpoint_url addressing_style use_ssl verify '
    'proxies connect_timeout read_timeout deadline max_attempts checksums')


class S3Storage(Options, Storage):
    """Django's file storage on S3.

    ``S3Storage(**options)``, or positionally as in 2008: bucket, access key, secret key, ACL,
    calling format. Copies are made of just these, pickles and migrations too but without secrets:
    what is set on an instance is in none. Names are Django's, relative to `location`; one that
    leaves it is a SuspiciousFileOperation. Errors are S3Error, the OSError a disk would raise.
    """

    __getattr__ = _no_boto
    default_content_type, _first_range = 'application/octet-stream', FIRST_RANGE
    _arguments = _options = _bucket_of = _latest = None  # type: Any  # what __new__ sets
    _POSITIONAL = ('bucket_name', 'access_key', 'secret_key', 'default_acl', 'addressing_style')
    _defaults = {}  # type: dict  # where a class has others than Options
    #: The settings' generation, and what _resolve() returns.
    _resolved = None, (None, (), {})  # type: tuple

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        if cls.__init__ is S3Storage.__init__:
            args, kwargs = (), dict(zip(cls._POSITIONAL, args), **kwargs)
        self._arguments = args[:1] + tuple(map(Secret.of, args[1:3])) + args[3:], _veiled(kwargs)
        self._options, self._latest = {}, (None, None)  # the last Config and its Bucket
        # A Bucket keeps what it learns, of its region and clock: one for each BucketOptions.
        self._bucket_of = functools.lru_cache(maxsize=64)(self._new_bucket)
        return self

    def __init__(self, *args: Any, **options: Any):
        options = _veiled(dict(zip(self._POSITIONAL, args), **options))
        count, args = len(args), ()
        if count > len(self._POSITIONAL):
            raise TypeError('positional arguments are just %s' % ', '.join(self._POSITIONAL))
        for name, value in options.items():
            if name not in _NAMED:
                near = [known for known in DECLARED if name in DECLARED[known].settings]
                near = near or difflib.get_close_matches(name, _NAMED, 1)
                raise ImproperlyConfigured('%s has no option %r%s' % (
                    type(self).__name__, name, near and '; did you mean %r?' % near[0] or ''))
            name = _NAMED[name].name
            if self._options.setdefault(name, value) is not value:
                raise ImproperlyConfigured('option %r is given twice' % name)
        # Read as attributes these win over what a subclass wrote, as they do in `config`.
        self.__dict__.update((name, DECLARED[name].clean(self, value))
                             for name, value in self._options.items() if not callable(value))

    def __setattr__(self, name, value):
        # An option may be set on the instance too, as subclasses of the old file do, before and
        # after they call this constructor. It counts at once, and like a constructor's argument.
        option = _NAMED.get(name)
        if option and not isinstance(getattr(type(self), name, None), property):
            self._options[option.name] = value = option.veil(value)
            self._resolved = None, (None, (), {})
            value = value if callable(value) else option.clean(self, value)
            vars(self)[option.name] = value  # what an alias says, the option's own name says too
        super().__setattr__(name, value)

    def deconstruct(self) -> tuple:
        """Return (dotted path, args, kwargs) for a migration or a pickle: no secrets.

        Both are files that others read; a storage made of them takes the secrets from settings.
        """
        def shown(value):
            """Return what may be shown of it, by repr(), which tells nothing of a Secret."""
            if isinstance(value, dict):
                return {name: each for name, each in value.items()
                        if not _SECRET_HEADERS.search(str(name).lower())}
            return str(value) if isinstance(value, Secret) else value
        cls, (args, kwargs) = type(self), self._arguments
        secrets = [value for name, value in self._options.items()
                   if DECLARED[name].secret and value]
        if any(value in secrets for value in args):
            raise ValueError('%s takes its secret key by position, where a migration or a pickle '
                             'would show it: take it by keyword' % cls.__name__)
        return '%s.%s' % (cls.__module__, cls.__qualname__), tuple(map(shown, args)), {
            name: shown(value) for name, value in kwargs.items() if not value
            or value not in secrets and not (name in _NAMED and _NAMED[name].secret)}

    def __eq__(self, other):
        if type(self) is not type(other):  # default_storage, a LazyObject, knows better
            return NotImplemented
        return (self._arguments, self._options) == (other._arguments, other._options)

    def __hash__(self):
        return hash(type(self))  # Why not the options: some are dicts, and they may be set

    def __reduce__(self):
        # A pickle is made of the same as a migration, and so holds no secret either.
        _, args, kwargs = self.deconstruct()
        return functools.partial(type(self), *args, **kwargs), ()

    def __deepcopy__(self, memo=None):
        # A copy stays in this process and keeps them.
        return type(self)(*self._arguments[0], **self._arguments[1])

    __copy__ = __deepcopy__

    # From options to a bucket, from names to keys.

    def _resolve(self):
        """Return (Config, names of what is asked on each use, {name: where}).

        Once, and again when a setting changes: url() would else take fifty times as long.
        """
        generation, resolved = _generation[0], self._resolved
        if resolved[0] != generation:
            found = {name: option.find(self) for name, option in DECLARED.items()}
            asked = {name for name, (value, _) in found.items()
                     if callable(value) or hasattr(value, '__get__')}
            config = Config(*(option.clean(self, None if name in asked else found[name][0])
                              for name, option in DECLARED.items()))
            places = {name: where for name, (_, where) in found.items()}
            resolved = self._resolved = generation, (config, asked, places)
        return resolved[1]

    @property
    def config(self) -> Any:
        """The options' values. Those of callables are asked anew each time."""
        generation, (config, asked, _) = self._resolved
        if generation != _generation[0]:
            config, asked, _ = self._resolve()
        return config._replace(**{n: DECLARED[n].ask(self) for n in asked}) if asked else config

    def _given_credentials(self, config):
        """Return the options' Credentials or None; both keys from one place, or it is an error."""
        keys, places = (config.access_key, config.secret_key), self._resolve()[2]
        key, secret, token = map(places.get, ('access_key', 'secret_key', 'security_token'))
        if any(keys) and (not all(keys) or key != secret):
            raise ImproperlyConfigured('access_key (from: %s) and secret_key (from: %s) must come '
                                       'together, from one place: set both' % (key, secret))
        # As in the environment: with two sets the token is that of the plain names.
        two_sets = key == 'settings' and all(
            getattr(settings, name, None) for name in DECLARED['access_key'].settings)
        own = config.security_token if token == key and not two_sets else ''
        return Credentials(*keys, own) if keys[0] else None

    def _bucket(self) -> Bucket:
        """Return the Bucket of the options as they are now, the same one while they stay."""
        config, latest = self.config, self._latest
        if latest[0] is not config:
            try:
                bucket = self._bucket_of(_generation[0], BucketOptions(*(
                    getattr(config, name) for name in BucketOptions._fields)))
            except ValueError as error:
                raise ImproperlyConfigured(str(error)) from None
            latest = self._latest = config, bucket
        return latest[1]  # Trap: self._latest may be another thread's by now

    def _new_bucket(self, generation, config):
        """Return a Bucket of `config`, BucketOptions; `generation` only makes the cache miss."""
        if not config.bucket_name:
            raise ImproperlyConfigured('no bucket: set bucket_name (AWS_STORAGE_BUCKET_NAME)')
        endpoint, given = config.endpoint_url, self._given_credentials(config)
        named = config.region_name or endpoint and endpoint_region(endpoint) or next(
            (found['region'] for found in profile(os.environ, config.session_profile)
             if 'region' in found), None)
        region = named or 'us-east-1'
        if endpoint is None and not config.use_ssl:
            endpoint = aws_endpoint(region, 'http')
        secure = endpoint is None or endpoint.startswith('https:')
        if config.addressing_style == 'virtual' and secure and '.' in config.bucket_name:
            logger.warning('bucket %s has dots, which no certificate covers: path style is used '
                           '(addressing_style, AWS_S3_ADDRESSING_STYLE)', config.bucket_name)
        # One place alone: whoever names two would be surprised by either. With none AWS's are
        # asked, by one source for all, since tenants by the hundred share them.
        lookups = [('the settings (AWS_ACCESS_KEY_ID)', lambda: given)] if given else []
        if config.credentials is not None:
            lookups += [('credentials (AWS_S3_CREDENTIALS)', config.credentials or Anonymous)]
        if len(lookups) + bool(config.session_profile) > 1:
            raise ImproperlyConfigured('access_key, credentials and session_profile: give one of '
                                       'them, and None for the others')
        source = CredentialSource(*lookups) if lookups else aws_source(
            config.session_profile, region, config.verify, config.proxies)
        transport = Transport(config.verify, None if config.proxies is None else dict(
            config.proxies), config.connect_timeout, config.read_timeout)
        bucket = Bucket(config.bucket_name, source, region, endpoint, config.addressing_style,
                        transport, config.checksums, config.max_attempts, config.deadline,
                        public_endpoint=config.public_endpoint_url)
        bucket.region_guessed = not named and is_aws(bucket.address().host)
        return bucket

    def _clean(self, name):
        """Return `name` normalised and relative. SuspiciousFileOperation if it is no file's."""
        if type(name) is str and _is_plain(name) and len(name) < KEY_LIMIT - len(
                self.config.location.encode()):
            return name
        text = str(name).replace('\\', '/')
        parts = [part for part in text.split('/') if part not in ('', '.')]
        clean = '/'.join(parts)
        why = ('is no text' if not isinstance(name, (str, os.PathLike)) else
               'is absolute' if text.startswith('/') else
               'holds ".."' if '..' in parts else
               'is empty' if not parts else
               'holds control characters' if re.search('[\x00-\x1f\x7f-\x9f]', text) else
               'holds lone surrogates' if re.search('[\ud800-\udfff]', text) else
               'makes a key of more than %d bytes' % KEY_LIMIT if len(
                   (self.config.location + clean).encode()) > KEY_LIMIT else '')
        if why:
            raise SuspiciousFileOperation('The name %.200r %s' % (text, why))
        return clean

    def _key(self, name):
        """Return the key of `name`."""
        return self.config.location + self._clean(name)

    def get_object_parameters(self, name: str) -> dict:
        """Return parameters for the upload of `name` in S3's names; a subclass may override it."""
        return dict(self.config.object_parameters)

    def _headers(self, name):
        """Return the headers that the options want for `name`; their dicts are never changed."""
        headers, given = Headers(self.config.headers), Secret.of(self.get_object_parameters(name))
        if given:
            headers.update(Headers(object_headers(given)))
        customer = 'x-amz-server-side-encryption-customer-'
        if customer + 'algorithm' in headers and customer + 'key' not in headers:
            raise ImproperlyConfigured('SSECustomerKey is missing: pickles, migrations have none')
        return headers

    def _content_type(self, name):
        """Return the content type that `name` suggests."""
        known = CONTENT_TYPES.get(posixpath.splitext(name)[1].lower())
        if known:
            return known
        guessed, encoding = mimetypes.guess_type('/' + name)  # Trap: it reads a: as a URL
        if encoding:  # Why not Content-Encoding: browsers would unpack a .tar.gz on download
            guessed = 'application/gzip' if encoding == 'gzip' else None
        return guessed or self.default_content_type

    def _sizes(self):
        """Return (part_size, max_concurrency) of a file."""
        config = self.config
        return config.part_size, config.max_concurrency if config.use_threads else 1

    # Django's methods.

    def _open(self, name, mode='rb'):
        """Return an S3File; Storage.open() comes here."""
        return S3File(self, self._clean(name), mode)

    def save(self, name: Any, content: Any, max_length: Optional[int] = None) -> str:
        """Store `content` under `name` or, unless file_overwrite, the next free one; return it.

        The content is read from its beginning through chunks(), and left open. When another
        takes the name between the look and the write, S3 refuses the write and the next name is
        looked for; FileExistsError if the content cannot be read again.
        """
        taken = []  # type: list
        while True:
            try:
                return super().save(name, content, max_length=max_length)
            except PreconditionFailed as error:
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    content.seek(0)
                    # A name twice: a subclass insists on it. It may, with file_overwrite.
                    if error.filename not in taken and len(taken) < 19:
                        taken.append(error.filename)
                        continue
                raise

    def _save(self, name, content):
        """Store `content`, whole or not at all; PreconditionFailed if the name is taken."""
        name = self._clean(name)
        with self._writer(name, getattr(content, 'content_type', None),
                          not self.config.file_overwrite, _size(content)) as out:
            for chunk in content.chunks():
                out.write(chunk.encode() if isinstance(chunk, str) else chunk)
        return name

    def _writer(self, name, content_type=None, exclusive=False, size=0):
        """Return a Writer for `name`; `size` is an aid for the length of parts, it may lie."""
        config, headers = self.config, self._headers(name)
        if 'content-type' not in headers:
            headers.add('content-type', content_type or self._content_type(name))
        if config.default_acl:
            headers.setdefault('x-amz-acl', config.default_acl)
        kind = headers['content-type'].split(';')[0].rstrip()
        packs = (config.gzip and 'content-encoding' not in headers
                 and kind in config.gzip_content_types)
        return Writer(self._bucket(), self._key(name), headers, *self._sizes(),
                      exclusive=exclusive, size=size, compress=packs)

    def _head(self, name):
        """Return the headers of the object; FileNotFoundError if there is none."""
        name = self._clean(name)
        return self._bucket().head_object(self._key(name), access_headers(self._headers(name)))

    def get_available_name(self, name: str, max_length: Optional[int] = None) -> str:
        """Return `name` itself to overwrite, else the first free one like it; not too long."""
        name = self._clean(name)
        if not self.config.file_overwrite:
            return super().get_available_name(name, max_length=max_length)
        excess = max(0, len(name) - (max_length or len(name)))
        root, extension = posixpath.splitext(name)
        if excess >= len(posixpath.basename(root)):
            raise SuspiciousFileOperation('%.200r cannot be cut to %s' % (name, max_length))
        return root[:len(root) - excess] + extension

    def exists(self, name: str) -> bool:
        """Tell whether there is an object; '' is True. Raises if S3 does not tell, as on 403."""
        if name == '':
            return True
        try:
            self._head(name)
        except NoSuchKey:
            return False
        return True

    def delete(self, name: str) -> None:
        """Delete the object; none is no error. ValueError for '' and None."""
        if not name:
            raise ValueError('delete() needs the name of a file')
        self._bucket().delete_object(self._key(name))

    def size(self, name: str) -> int:
        """Return the object's bytes, as `open` reads them. FileNotFoundError if there is none."""
        head = self._head(name)
        if self.config.gzip and head.get('content-encoding') == 'gzip':
            with self._open(name) as file:
                return file.size
        return int(head['content-length'])

    def get_modified_time(self, name: str) -> datetime.datetime:
        """Return when it was stored: aware if USE_TZ, else naive in TIME_ZONE.

        FileNotFoundError if there is none, NotImplementedError if no time was answered.
        """
        moment = parse_http_date(self._head(name).get('last-modified'))
        if moment is None:
            raise NotImplementedError('no Last-Modified was answered for %.200r' % name)
        return moment if settings.USE_TZ else timezone.make_naive(
            moment, timezone.get_default_timezone())

    def listdir(self, path: str) -> Tuple[list, list]:
        """Return (directories, files) in `path`, names only; both empty if there is none.

        Keys that are no Django names (``a//b``, ``../x``) are left out and logged.
        """
        root = str(path).replace('\\', '/') in ('', '.', '/')
        prefix = self.config.location if root else self._key(path) + '/'
        found = [], []  # type: Tuple[list, list]
        for page in self._bucket().list_objects(prefix, '/'):
            for key in page.common_prefixes + [entry.key for entry in page.contents]:
                base, slash, rest = key[len(prefix):].partition('/')
                if not rest and re.match(r'(?!\.\.?\Z)[^\x00-\x1f\x7f-\x9f\\]+\Z', base):
                    found[0 if slash else 1].append(base)
                elif base or slash:  # else the marker of the directory: no file and no surprise
                    logger.warning('listdir: %.200r is no name of Django\'s, left out', key)
        return found

    def url(self, name: Optional[str], parameters: Optional[dict] = None,
            expire: Optional[int] = None, http_method: Optional[str] = None) -> str:
        """Return a URL for one `http_method` (GET), for `expire` seconds (querystring_expire).

        `parameters` are S3's, such as ResponseContentDisposition; for PUT those of an upload,
        whose headers must then be sent. Not signed if `querystring_auth` is False, nor with
        `custom_domain` but by `cloudfront_signer`. A trailing slash is kept. No request is made.
        """
        key = self._key(name) + ('/' if str(name).endswith(('/', '\\')) else '')
        config, bucket, method = self.config, self._bucket(), (http_method or 'GET').upper()
        parameters = Secret.of(parameters)
        query, headers = url_parameters(method, parameters) if parameters else ((), ())
        if config.custom_domain:
            url = '%s://%s/%s' % (config.url_protocol.rstrip(':/'), config.custom_domain, quote(
                key, '/')) + ('?' + canonical_query(query) if query else '')
            if (config.querystring_auth and (config.cloudfront_key or config.cloudfront_key_id)
                    and self._resolve()[2]['cloudfront_signer'] == 'default'):
                raise ImproperlyConfigured('AWS_CLOUDFRONT_KEY needs cloudfront_signer (AWS_CLOUD'
                                           'FRONT_SIGNER), a callable: README.rst has one')
            if not config.cloudfront_signer or not config.querystring_auth:
                return url
            now, expires = self._lifetime(key, expire)
            return config.cloudfront_signer(url, int(now.timestamp()) + expires)
        if not config.querystring_auth or config.credentials is False:
            return bucket.public_url(key, query)
        now, expires = self._lifetime(key, expire)
        return self._signing(bucket).presigned_url(method, key, expires, query, headers, now)

    def _signing(self, bucket):
        """Return `bucket`; say once that its region is a guess: URLs and forms do not heal."""
        if bucket.region_guessed:
            bucket.region_guessed = False
            logger.warning('region_name (AWS_S3_REGION_NAME) is not set: URLs are signed for '
                           'us-east-1 and fail if bucket %s is elsewhere', bucket.name)
        return bucket

    def _lifetime(self, key, expire):
        """Return (when a URL of `key` begins, seconds it lasts); `expire` None: the option's.

        In one window all begin together, and last until the next window's last: so long more.
        """
        now, window = self._bucket().now(), self.config.querystring_window
        expires = self.config.querystring_expire if expire is None else expire
        if window:
            # Why the sum: not all keys are to change at one moment.
            age = (int(now.timestamp()) - zlib.crc32(key.encode())) % window
            now, expires = now - datetime.timedelta(seconds=age), expires + window
        return now, expires

    def presigned_post(self, name: str, expire: Optional[int] = None,
                       max_size: Optional[int] = None, content_type: Optional[str] = None,
                       conditions: Iterable = ()) -> dict:
        """Return {'url': ..., 'fields': ...} of a form that may POST a file as `name`.

        Up to `max_size` bytes and of `content_type` where given; `conditions` are S3's own, for
        fields of your own. The form's ``file`` must be its last field.
        """
        fields = {'content-type': content_type, 'acl': self.config.default_acl}
        if max_size is not None:
            conditions = list(conditions) + [['content-length-range', 0, max_size]]
        return self._signing(self._bucket()).presigned_post(
            self._key(name), self.config.querystring_expire if expire is None else expire,
            conditions, {field: value for field, value in fields.items() if value})


# Static files. collectstatic goes name by name, with questions before each: in a run of it, and
# only there, a stand-in for the Bucket answers them from one listing, and works ahead.

COLLECTSTATIC = 'django.contrib.staticfiles.management.commands.collectstatic'
#: Precedent: whitenoise's. The second is for names that change when the content does.
BRIEFLY, FOR_GOOD = 'public, max-age=60', 'public, max-age=31536000, immutable'
#: Running Command -> {storage: _Run}.
_runs = weakref.WeakKeyDictionary()  # type: weakref.WeakKeyDictionary


class _Run:
    """The Bucket in one run of collectstatic, which asks it what it would ask of S3.

    `known` maps keys to Entry, and directories to None; own writes keep it true. `queued` maps
    keys to (Future, body) of uploads on their way: up to `ahead` of them when a call returns,
    so 0 means that each call ends its work, and raises its error. `held` maps keys that are to be
    deleted to Entry: a save drops the key, and nothing is missing meanwhile. `sources` maps
    names to functions that open them, while Django post-processes. `waits` tells that our
    post_process is still to come, `over` that it was: each call does its work at once then.
    """

    def __init__(self, bucket, location, command):
        self.bucket, self.clear = bucket, command.clear
        self.post_process = command.post_process and not command.dry_run
        self.over, self.told = False, ''  # told: see create_multipart_upload
        self.known, self.queued, self.held, self.sources = {}, {}, {}, {}
        for page in bucket.list_objects(location):
            for entry in page.contents:  # --clear writes all anew: nothing equals a size of -1
                self.add(entry._replace(size=-1) if self.clear else entry)

    def __getattr__(self, name):
        return getattr(self.bucket, name)

    def add(self, entry):
        """Know an object, and the directories that it lies in."""
        self.known[entry.key] = entry
        self.known.update((entry.key[:found.end()], None) for found in re.finditer('/', entry.key))

    def find(self, key):
        """Return the Entry of `key` or None; its upload is awaited, and its error raised."""
        if key in self.queued:
            self.queued[key][0].result()  # Trap: an error stays, some callers swallow it
            del self.queued[key]
        return self.known.get(key)

    def settle(self, most=0):
        """Wait until no more than `most` uploads are on their way; raise the error of one."""
        while len(self.queued) > most:
            wait([future for future, _ in self.queued.values()], return_when=FIRST_COMPLETED)
            for key in [key for key, (future, _) in self.queued.items() if future.done()]:
                self.find(key)

    def flush(self):
        """Wait for all uploads, then delete what is held, a thousand keys a request."""
        self.settle()
        for start in range(0, len(self.held), 1000):
            self.bucket.delete_objects(sorted(self.held)[start:start + 1000])
        self.held.clear()

    def keeps(self, key, size, etag, headers):
        """Tell whether the object has the content of this `etag` already; know it as stored.

        S3's own is of another kind with SSE-KMS or SSE-C, and ours under FIPS: so where the size
        is the same one HEAD asks for the one that was stored with the object.
        """
        entry = self.find(key) or self.held.pop(key, None)
        # Fact: rclone lists ETags without quotes; here none has them.
        same = entry and entry.size == size and (entry.etag.strip('"') == etag or etag == (
            self.bucket.head_object(key, access_headers(headers)).get('x-amz-meta-hash')))
        self.add(entry if same else Entry(key, size, etag, format_iso_date(self.bucket.now())))
        return same

    # The Bucket's methods, as S3Storage calls them.

    def head_object(self, key, headers=()):
        """Return what the listing tells of an object; nothing of a directory, which is there.

        No time in a run, and so Django has the contents compared: what is deployed may be older
        than what is stored, as it is after a rollback.
        """
        entry = self.find(key)
        if not entry and key + '/' not in self.known:
            raise NoSuchKey(errno.ENOENT, 'not in the listing', key)
        return {} if not entry else {
            'content-length': entry.size, 'content-encoding': 'gzip',  # maybe: size() has to look
            'last-modified': self.over and format_datetime(entry.last_modified, usegmt=True)}

    def list_objects(self, prefix, delimiter):
        """Return the one page of what lies right below `prefix`."""
        return [Listing([], [key for key in self.known if key.startswith(prefix)
                             and delimiter not in key[len(prefix):-1]])]

    def delete_object(self, key):
        """Delete the object once it is clear that it is not saved again."""
        if self.sources:
            return  # Why not: a hashed name stands in cached pages; and it is saved again
        self.held[key] = self.find(key) and self.known.pop(key)
        if self.over or self.clear and not self.waits and not any(self.known.values()):
            self.flush()  # it was the last: maybe nothing else will be called

    def put_object(self, key, body, headers, exclusive):
        """Store `body` unless it is stored, maybe later; what has more than 1 MiB at once."""
        etag = (md5(body) or hashlib.sha256(body)).hexdigest()
        if not self.keeps(key, len(body), etag, headers):
            headers = dict(headers, **{'x-amz-meta-hash': etag})
            self.queued[key] = submit(
                self.ahead and len(body) <= 1024 ** 2, self.bucket.put_object, key, body, headers,
                exclusive), body
        self.settle(self.ahead)

    def create_multipart_upload(self, key, headers):
        """Begin an upload in parts, with the ETag in `told`, the one that `keeps` knows.

        Without one (FIPS, content that cannot be read twice or has no size) it comes to be known
        here. Trap: what was held would else be deleted after it was stored.
        """
        etag, self.told = self.told, ''
        if not etag:
            self.held.pop(key, None)
            self.add(Entry(key, -1, '', format_iso_date(self.bucket.now())))
        return self.bucket.create_multipart_upload(key, dict(headers, **{'x-amz-meta-hash': etag}))


class S3StaticStorage(S3Storage):
    """Storage for collectstatic, which it makes quick; URLs are not signed, names are kept.

    In a run one listing tells what is there; what is stored already, byte for byte, is not
    uploaded again, the rest on `max_concurrency` (16) connections; nothing is missing meanwhile.
    A failed upload fails the run and names the file. Everywhere else it is an S3Storage. Changed
    headers are not noticed: `collectstatic --clear` writes all anew. That is refused where the
    default storage's files might be deleted.
    """

    querystring_auth, file_overwrite, _defaults = False, True, {'max_concurrency': 16}
    _first_range = 8 * 1024 ** 2  # static files are read whole; a manifest in one request

    def _run(self):
        """Return the _Run of the collectstatic that is calling, None if none is.

        The one trick in this file. Django tells a storage neither that a run begins nor with
        which options; so its Command is looked for in the calling frames, and only read. A
        process that never loads the command, as a web server's, does not even look.
        """
        module, frame = sys.modules.get(COLLECTSTATIC), sys._getframe(1)
        while hasattr(module, 'Command') and frame:
            command = frame.f_code.co_name == 'handle' and frame.f_locals.get('self')
            if isinstance(command, module.Command) and hasattr(command, 'post_process'):
                runs = _runs.setdefault(command, {})
                own = getattr(command.storage, '_wrapped', command.storage)  # what is cleared
                if self not in runs:
                    # Until it is made it is none of ours; a manifest_storage is not cleared.
                    if (command.clear and (own == self or not isinstance(own, S3StaticStorage))
                            and self._shares_location()):
                        raise module.CommandError(
                            '--clear might delete other files: set a location (AWS_LOCATION), not '
                            'empty, and neither in nor around the default storage\'s')
                    runs[self] = _Run(super()._bucket(), self.config.location, command)
                run = runs[self]
                # Trap: post_process of another storage, or not ours, does not wait for us.
                run.waits = (command.post_process and not run.over and own is self
                             and type(self).post_process.__module__ == __name__)
                run.ahead = self._sizes()[1] - 1 if run.waits else 0
                return run
            frame = frame.f_back

    def _shares_location(self):
        """Tell whether files of others may lie below `location`."""
        mine = self.config
        theirs = default_storage.config if isinstance(default_storage, S3Storage) else None
        return not mine.location or theirs and theirs.bucket_name == mine.bucket_name and (
            mine.location.startswith(theirs.location) or theirs.location.startswith(mine.location))

    def _bucket(self):
        """Return the Bucket; in a run its stand-in."""
        return self._run() or super()._bucket()

    def _headers(self, name):
        """Return the headers that the options want, and Cache-Control."""
        headers, run = super()._headers(name), self._run()
        hashed = run and run.sources and name != getattr(self, 'manifest_name', '')
        headers.setdefault('cache-control', FOR_GOOD if hashed else BRIEFLY)
        return headers

    def _open(self, name, mode='rb'):
        """Return a file: in a run its source or what is on its way, if it is either."""
        run, name, key = self._run(), self._clean(name), self._key(name)
        if run and mode == 'rb' and key in run.queued and not self.config.gzip:
            return ContentFile(bytes(run.queued[key][1]), name)
        if run and run.find(key) and mode == 'rb' and name in run.sources:
            return run.sources[name]()
        return super()._open(name, mode)

    def _save(self, name, content):
        """Store `content`, unless it is stored; what takes parts is looked at beforehand."""
        run, name, size, etag = self._run(), self._clean(name), _size(content), ''
        if not run:
            return super()._save(name, content)
        if md5() and size > self.config.part_size and content.seekable():
            # Fact: the ETag of what was uploaded in parts is the MD5 of theirs, and their number.
            parts = [md5(part.encode() if isinstance(part, str) else part).digest() for part in
                     content.chunks(part_length(1, 0, self.config.part_size, size))]
            etag = '%s-%d' % (md5(b''.join(parts)).hexdigest(), len(parts))
        if not etag or not run.keeps(self._key(name), size, etag, self._headers(name)):
            run.told = etag
            try:
                super()._save(name, content)
            except BaseException:  # some callers try again: it must not pass for stored
                run.known.pop(self._key(name), None), run.queued.pop(self._key(name), None)
                raise
        if not run.waits:
            run.flush()
        return name

    def post_process(self, paths: dict, dry_run: bool = False, **options: Any) -> Iterable:
        """Wait for the uploads, then delete what --clear left; Django's last call in a run."""
        run = self._run()
        if run:
            run.flush()
            run.sources, run.over = {}, True
        return []


class S3ManifestStaticStorage(ManifestFilesMixin, S3StaticStorage):
    """S3StaticStorage with Django's hashed names, which browsers may keep for a year.

    Options and attributes are those of ManifestFilesMixin. The manifest is stored last, when all
    that it names is there; a run that fails leaves the old one and its files.
    """

    def read_manifest(self: Any) -> Optional[str]:  # type: ignore[override]
        """Return the manifest, None if there is none, or in a run that makes a new one."""
        run = self._run()
        if run and run.post_process and not run.over:
            return None
        # Trap: Django before 3.0 takes any OSError, a 503 too, for a missing manifest.
        with contextlib.suppress(FileNotFoundError):
            with getattr(self, 'manifest_storage', self).open(self.manifest_name) as manifest:
                return manifest.read().decode()
        return None

    def post_process(self, paths: dict, dry_run: bool = False, **options: Any) -> Iterator:
        """Yield what Django's does; all is stored at the end."""
        if dry_run:  # Trap: Django before 3.0 would store an empty manifest
            return
        run = self._run()
        if run:
            run.sources = {self._clean(name): functools.partial(storage.open, path)
                           for name, (storage, path) in paths.items()}
        yield from super().post_process(paths, **options)
        S3StaticStorage.post_process(self, paths)

    def save_manifest(self) -> None:
        """Store the manifest, after all that it names."""
        if self._run():
            self._run().settle()
        super().save_manifest()

    def url(self, name: Optional[str], force: bool = False) -> str:  # type: ignore[override]
        """Return the URL of the hashed name. Fact: Django's is not percent-encoded any more."""
        return quote(super().url(name, force), "/:?#[]@!$&'()*,;=")  # type: ignore[arg-type]


# ---- 11. Command line --------------------------------------------------------------------------
#
# Each step of `check` is a block that says what it found, or raises. What to change is mostly
# said by the exceptions of Transport and Bucket, so that it is in a project's own logs as well.
# Trap: this is __main__, while Django imports this file again, under its name: the storage's
# class, and what it raises, are others than here. So they are told by what they can do.


@contextlib.contextmanager
def _step(failed, title, fatal=False):
    """Print a line on what happens in the block: the time, what it said or what it raised.

    A failure is added to `failed`; after a `fatal` one nothing else makes sense.
    """
    started, words = time.monotonic(), []
    try:
        yield words.append
    except Exception as error:  # any: the line is wanted, and those after it
        failed.append(title)
        words.append('%s: %s' % (type(error).__name__, getattr(error, 'strerror', 0) or error))
    print('%-4s %-13s %6.0f ms  %s' % ('FAIL' if title in failed else 'ok', title, 1000 * (
        time.monotonic() - started), '; '.join(filter(None, words)) or 'fine'))
    if fatal and title in failed:
        sys.exit(1)


def _check_place(step, alias):
    """Look at settings, server, clock and credentials, before anything is signed.

    Return the storage that is `alias` in STORAGES. What is set is printed with where it was.
    """
    with step('settings', fatal=True) as say:
        django.setup()
        if django.VERSION >= (5, 1) and hasattr(settings, 'DEFAULT_FILE_STORAGE'):
            # Trap: without a word; the files then go to the disk.
            say('Django 5.1 and later ignore DEFAULT_FILE_STORAGE: write STORAGES')
        storage = getattr(files, 'storages', {  # Fact: before Django 4.2 there are just these two
            'default': default_storage, 'staticfiles': staticfiles_storage})[alias]
        if not hasattr(storage, '_bucket'):
            kind = storage.__class__.__name__  # Trap: default_storage's type() is its proxy's
            raise ValueError('%r is a %s, not of minis3storage' % (alias, kind))
        config, bucket, (_, _, places) = storage.config, storage._bucket(), storage._resolve()
        url = '%s://%s%s' % bucket._location('')
        say(url.startswith('http:') and 'http: anyone on the way can read and change it')
        acl = storage._headers('check').get('x-amz-acl') or config.default_acl or ''
        say(acl.startswith('public') and 'ACL %s: all the world can read what is saved' % acl)
    for name, value in config._asdict().items():
        if places[name] != 'default' or name == 'file_overwrite':
            if callable(value):  # Trap: a partial's repr tells what it was given
                value = getattr(value, '__qualname__', type(value).__name__)
            print('       %s = %r (%s)' % (name, value, places[name]))
    with step('connection', fatal=True) as say:
        say(url)  # any answer will do, to what is not signed it is 403
        served = parse_http_date(bucket.transport.ask('GET', url).headers.get('date'))
    # S3 takes a quarter of an hour. Requests learn its time, but only when one was refused.
    with step('clock') as say:
        ahead = (utcnow() - (served or utcnow())).total_seconds()
        say('%+.0f s' % ahead)
        if abs(ahead) > 300:
            raise ValueError('set it, the server\'s is right: URLs end too early, or never begin')
    # Never a secret: their repr has none, nor have those of options.
    with step('credentials', fatal=True) as say:
        credentials = bucket.credentials.get()
        say('%r from %s' % (credentials, bucket.credentials._kept[2]))
        if credentials.lasts(utcnow()) < config.querystring_expire:
            say('URLs for %d s end sooner, with them' % config.querystring_expire)
    return storage


def _check_access(step, storage):
    """Do what a storage does, on one object of a random name that is deleted again.

    What the server merely lacks is no failure: the words after "ignored" tell what it costs.
    """
    name, bucket = 'minis3storage-check-%016x' % random.getrandbits(64), storage._bucket()
    region, body = bucket.region, b'minis3storage check'
    # First, since its refusals say most: HEAD, with which save() begins, has no body for a reason.
    with step('list'):
        next(bucket.list_objects(storage._key(name)))
    with step('put', fatal=True):
        name = storage.save(name, ContentFile(body))
        key, headers = storage._key(name), storage._headers(name)
    # Requests learn this as well; a URL that was signed for another region stays wrong.
    with step('region') as say:
        say(region)
        if bucket.region != region:
            raise ValueError('set region_name (AWS_S3_REGION_NAME) to %r' % bucket.region)
    with step('get') as say:
        say('%d bytes' % len(storage.open(name).read()))
    with step('range') as say:
        part = bucket.get_object(key, 1, 5, headers=access_headers(headers)).read(len(body))
        say(part != body[1:5] and 'ignored: reading parts of a file is slow')
    # Without it only the look protects, with which save() begins: not from who saves meanwhile.
    with step('If-None-Match') as say, contextlib.suppress(FileExistsError):
        bucket.put_object(key, body, headers, if_none_match=True)
        say('ignored: of two that save one name at the same moment, the second wins')
    # As a browser does it: with no signature but the URL's, and where public_endpoint_url or
    # custom_domain say. Both are wrong more often than S3 is.
    with step('url()') as say:
        getattr(storage, 'hashed_files', {})[name] = name  # as if the manifest had it
        url = storage.url(name)
        status = bucket.transport.ask('GET', url).status
        say('%s answers %d' % (url.partition('?')[0], status))
        if status != 200:
            raise ValueError('see public_endpoint_url, custom_domain' if 'Signature=' in url else
                             'unsigned: let all s3:GetObject, or set querystring_auth to True')
    with step('delete'):
        storage.delete(name)


def main(arguments: list) -> int:
    """Print version and SHA-256 of this file, so that vendored copies can be audited.

    check [alias] tries what the storage of that name in STORAGES does, and says a line each on
    what to change. The settings are --settings or DJANGO_SETTINGS_MODULE. Status 0: all is well;
    1: something is not; 2: not called like that.
    """
    parser = argparse.ArgumentParser('python -m minis3storage', description=main.__doc__)
    parser.add_argument('command', nargs='?', choices=['check'])
    parser.add_argument('alias', nargs='?', default='default')
    parser.add_argument('--settings', default=os.environ.get('DJANGO_SETTINGS_MODULE'))
    asked, failed = parser.parse_args(arguments), []  # type: Any, list
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    print('minis3storage', __version__, 'sha256', digest)
    if asked.command:
        if asked.settings:
            os.environ['DJANGO_SETTINGS_MODULE'] = asked.settings
        elif not settings.configured:
            parser.error('which project? In the folder of its manage.py: --settings its.settings')
        step = functools.partial(_step, failed)
        _check_access(step, _check_place(step, asked.alias))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

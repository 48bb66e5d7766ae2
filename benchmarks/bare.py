"""S3 with the standard library's HTTP and a signature: what the others are held against.

`Limit` is `http.client` on one kept connection a thread, Signature Version 4 written out for just
these requests, the day's signing key cached: about what Python can do without a parser of one's
own. It retries, checks and promises nothing. `WithoutKeepAlive` is the same on `urlopen`.
"""

import functools
import hashlib
import hmac
import http.client
import threading
import time
import urllib.request
from urllib.parse import quote
from xml.etree import ElementTree

PART = 8 * 1024 * 1024  #: bytes of a part of an upload, as with the others' defaults
EMPTY = hashlib.sha256().hexdigest()


class Limit:
    """The operations of the benchmarks on one bucket."""

    def __init__(self, endpoint, bucket, access_key, secret_key, region):
        self.endpoint, self.bucket, self.region = endpoint, bucket, region
        self.scheme, _, self.host = endpoint.partition('://')
        self.access_key, self.secret_key = access_key, secret_key
        self.local = threading.local()

    @functools.lru_cache(maxsize=1)
    def signing_key(self, day):
        key = ('AWS4' + self.secret_key).encode()
        for word in day, self.region, 's3', 'aws4_request':
            key = hmac.digest(key, word.encode(), 'sha256')
        return key

    def signature(self, method, path, query, headers, names, digest, stamp, scope):
        canonical = '%s\n%s\n%s\n%s\n%s\n%s' % (method, path, query, headers, names, digest)
        text = 'AWS4-HMAC-SHA256\n%s\n%s\n%s' % (
            stamp, scope, hashlib.sha256(canonical.encode()).hexdigest())
        return hmac.digest(self.signing_key(stamp[:8]), text.encode(), 'sha256').hex()

    def signed(self, method, path, query, body):
        """Return the headers of a request; `query` is sorted and encoded already."""
        stamp = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())
        scope = '%s/%s/s3/aws4_request' % (stamp[:8], self.region)
        digest = hashlib.sha256(body).hexdigest() if body else EMPTY
        headers = 'host:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n' % (self.host, digest, stamp)
        names = 'host;x-amz-content-sha256;x-amz-date'
        return {'X-Amz-Date': stamp, 'X-Amz-Content-SHA256': digest, 'Authorization': (
            'AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s' % (
                self.access_key, scope, names, self.signature(
                    method, path, query, headers, names, digest, stamp, scope)))}

    def path(self, name):
        return '/%s/%s' % (self.bucket, quote(name))

    def send(self, method, target, body, headers):
        """Return the response, to be read to its end, on this thread's one connection."""
        try:
            connection = self.local.connection
        except AttributeError:
            connection = self.local.connection = (
                http.client.HTTPSConnection if self.scheme == 'https' else
                http.client.HTTPConnection)(self.host)
        connection.request(method, target, body, headers)
        return connection.getresponse()

    def ask(self, method, path, query='', body=b'', headers=()):
        """Return the response to a signed request; OSError for a status of failure."""
        headers = dict(self.signed(method, path, query, body), **dict(headers))
        response = self.send(method, path + '?' + query if query else path, body or None, headers)
        if response.status >= 300 and response.status != 404:
            raise OSError(response.status, response.read())
        return response

    def exists(self, name):
        response = self.ask('HEAD', self.path(name))
        response.read()
        return response.status == 200

    def save(self, name, content):
        self.ask('PUT', self.path(name), body=content).read()

    def read(self, name):
        return self.ask('GET', self.path(name)).read()

    def read_range(self, name, start, length):
        headers = {'Range': 'bytes=%d-%d' % (start, start + length - 1)}
        return self.ask('GET', self.path(name), headers=headers).read()

    def pieces(self, name, size):
        """Yield the object in pieces, from one answer."""
        response = self.ask('GET', self.path(name))
        while True:
            piece = response.read(size)
            if not piece:
                return
            yield piece

    def save_file(self, name, file):
        """Upload in parts, one after the other."""
        path, etags = self.path(name), []
        answer = ElementTree.fromstring(self.ask('POST', path, 'uploads=').read())
        upload = quote(answer.findtext('{*}UploadId'), '')
        while True:
            part = file.read(PART)
            if not part:
                break
            response = self.ask('PUT', path, 'partNumber=%d&uploadId=%s' % (
                len(etags) + 1, upload), part)
            response.read()
            etags.append(response.headers['ETag'])
        self.ask('POST', path, 'uploadId=' + upload, (
            '<CompleteMultipartUpload>%s</CompleteMultipartUpload>' % ''.join(
                '<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>' % pair
                for pair in enumerate(etags, 1))).encode()).read()

    def listdir(self):
        """Return the names in the bucket."""
        names, token = [], ''
        while token is not None:
            query = 'delimiter=%2F&encoding-type=url&list-type=2'
            if token:
                query = 'continuation-token=%s&%s' % (quote(token, ''), query)
            page = ElementTree.fromstring(self.ask('GET', '/' + self.bucket, query).read())
            names += [key.text for key in page.iterfind('{*}Contents/{*}Key')]
            token = page.findtext('{*}NextContinuationToken')
        return names

    def signed_url(self, name):
        stamp = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())
        scope, path = '%s/%s/s3/aws4_request' % (stamp[:8], self.region), self.path(name)
        query = ('X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=%s%%2F%s&X-Amz-Date=%s'
                 '&X-Amz-Expires=3600&X-Amz-SignedHeaders=host' % (
                     self.access_key, scope.replace('/', '%2F'), stamp))
        return '%s%s?%s&X-Amz-Signature=%s' % (self.endpoint, path, query, self.signature(
            'GET', path, query, 'host:%s\n' % self.host, 'host', 'UNSIGNED-PAYLOAD', stamp, scope))

    def unsigned_url(self, name):
        return self.endpoint + self.path(name)


class WithoutKeepAlive(Limit):
    """The same on urllib's `urlopen`, which connects anew for each request."""

    def send(self, method, target, body, headers):
        request = urllib.request.Request(self.endpoint + target, body, headers, method=method)
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:  # for `ask` to judge
            return error

"""The server of the benchmarks: nginx as an S3 that is fast, the same to all, and checks nothing.

Objects are files below `folder`: nginx's own GET, HEAD, Range, PUT and DELETE. Listings are files
as well, written beforehand; parts of an upload are taken and forgotten. Signatures are not looked
at: who signs well is a matter of the tests. What a client asked is counted in nginx's own log.

It answers at once (`near`, http) and from afar (`far`, https, through `Line`).
"""

import collections
import html
import multiprocessing
import os
import pathlib
import pwd
import queue
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

ROUND_TRIP = 0.01  #: seconds between a client and `far`
RATE = 90e6        #: bytes a second, of each of its connections in each direction
PAGE = 1000        #: keys on a page of a listing, S3's limit

CONFIGURATION = '''
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
user {user};
daemon off;
worker_processes 1;  # there is work for a client on the other core
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/bodies;
    client_max_body_size 0;
    proxy_temp_path {folder}/unused; fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused; scgi_temp_path {folder}/unused;
    keepalive_requests 10000000;
    keepalive_timeout 600s;
    default_type application/octet-stream;
    sendfile on;
    merge_slashes off;
    log_format asked '$request_method $status $connection $request_uri';
    access_log {folder}/asked.log asked;

    # An operation of S3's is the method, whether there is a key, and the query.
    map "$request_method $request_uri" $operation {{
        default                                object;
        "~^POST [^?]+\\?uploads"                initiate;
        "~^POST [^?]+\\?uploadId="              complete;
        "~^PUT [^?]+\\?.*partNumber="           part;
        "~^HEAD /[^/?]+/?$"                    bucket;
        "~^GET /[^/?]+/?(\\?|$)"                listing;
    }}
    # A page is named by version 2's token or by version 1's marker.
    map $args $page {{
        default                                   1;
        "~(?:continuation-token|marker)=page-(?<number>\\d+)"  $number;
    }}
    # S3 answers 200 and an ETag to what WebDAV calls created (201) or changed (204).
    header_filter_by_lua_block {{
        if ngx.var.request_method == "PUT" and ngx.status < 300 then
            ngx.status = 200
            ngx.header["Content-Length"] = 0
            ngx.header["Location"] = nil
            ngx.header["ETag"] = '"d41d8cd98f00b204e9800998ecf8427e"'
        end
    }}
    server {{
        listen 127.0.0.1:{near};
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        root {folder};
        # Named, since $1 would be the map's by then.
        rewrite ^/?(?<place>[^/]*)(?<key>.*)$ /$operation/$place$key last;

        location /object/ {{
            internal;
            dav_methods PUT DELETE;
            create_full_put_path on;
            error_page 404 = @missing;
        }}
        location /part/ {{
            internal;
            dav_methods PUT;
            create_full_put_path on;
        }}
        location /listing/ {{
            internal;
            default_type application/xml;
            rewrite ^ /listing/$place/$page break;
        }}
        location /bucket/ {{ internal; return 200; }}
        location /initiate/ {{
            internal;
            default_type application/xml;
            return 200 '<InitiateMultipartUploadResult><Bucket>bench</Bucket><Key>key</Key>
                        <UploadId>upload-1</UploadId></InitiateMultipartUploadResult>';
        }}
        location /complete/ {{
            internal;
            default_type application/xml;
            return 200 '<CompleteMultipartUploadResult>
                        <Location>http://127.0.0.1/bench/key</Location><Bucket>bench</Bucket>
                        <Key>key</Key>
                        <ETag>&quot;d41d8cd98f00b204e9800998ecf8427e-2&quot;</ETag>
                        </CompleteMultipartUploadResult>';
        }}
        location @missing {{
            default_type application/xml;
            return 404 '<Error><Code>NoSuchKey</Code><Message>No such key.</Message></Error>';
        }}
    }}
}}
'''

#: What a client asked: the method, or LIST; nginx's number of the connection.
Asked = collections.namedtuple('Asked', 'method connection')


class Line:
    """A line to `target` of ROUND_TRIP and of RATE a connection: a relay of threads.

    Why not netem in a network namespace: it needs root and a kernel that has it. Bytes wait here
    for the time they would be on their way, in order, and are taken in no faster than the rate.
    TCP's own handshake ends here at once, so a connection's first bytes wait a round trip longer.
    """

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(('127.0.0.1', 0), backlog=128)
        self.port = self.listener.getsockname()[1]

    def serve(self):
        """Take connections for ever."""
        while True:
            client = self.listener.accept()[0]
            server = socket.create_connection(self.target)
            opened = time.monotonic() + 1.5 * ROUND_TRIP
            for source, sink in (client, server), (server, client):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                way = queue.Queue(64)
                for step in (self.take, source, way, opened), (self.give, sink, way):
                    threading.Thread(target=step[0], args=step[1:], daemon=True).start()

    @staticmethod
    def take(source, way, opened):
        """Put what comes from `source` on its way, with the time it arrives at the other end."""
        free, data = 0, b'...'
        while data:
            try:
                data = source.recv(131072)
            except OSError:  # reset: to the other end it is over
                data = b''
            now = time.monotonic()
            # Then the line has taken it in. A thread that woke late may catch up.
            free = max(free, now - 0.002) + len(data) / RATE
            way.put((max(max(free, now) + ROUND_TRIP / 2, opened), data))
            if free - now > 0.001:  # shorter sleeps are not worth a switch
                time.sleep(free - now)

    @staticmethod
    def give(sink, way):
        """Give what is on its way to `sink` when it arrives."""
        data = b'...'
        while data:
            due, data = way.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                sink.sendall(data)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
            except OSError:  # nobody is there any more; empty the way all the same
                pass


class Server:
    """nginx and the line to it, in `folder`, from entering to leaving a ``with``."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.ca = self.folder / 'ca.pem'

    def __enter__(self):
        for name in 'object', 'part', 'listing', 'bodies':
            (self.folder / name).mkdir()
        self.certify()
        near, tls = free_ports(2)
        (self.folder / 'nginx.conf').write_text(CONFIGURATION.format(
            folder=self.folder, near=near, tls=tls, user=pwd.getpwuid(os.getuid()).pw_name))
        with (self.folder / 'error.log').open('a') as errors:
            self.nginx = subprocess.Popen(['/usr/sbin/nginx', '-c', self.folder / 'nginx.conf'],
                                          stderr=errors)
        line = Line(('127.0.0.1', tls))
        self.line = multiprocessing.Process(target=line.serve, daemon=True)
        self.line.start()
        self.near, self.far = 'http://127.0.0.1:%d' % near, 'https://127.0.0.1:%d' % line.port
        self.log = None
        for _ in range(100):
            try:
                self.asked()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise SystemExit('nginx does not start: ' + (self.folder / 'error.log').read_text())

    def __exit__(self, *_):
        self.line.terminate()
        self.nginx.terminate()
        self.nginx.wait()

    def certify(self):
        """Make a certificate for 127.0.0.1, and the authority that clients are told to trust."""
        # Every extension is written out: Python 3.13 insists on some, and defaults differ.
        (self.folder / 'openssl.cnf').write_text('[req]\ndistinguished_name = name\n[name]\n')

        def openssl(name, subject, *extensions, by=()):
            subprocess.run(
                ['openssl', 'req', '-config', 'openssl.cnf', '-x509', '-nodes', '-days', '30',
                 '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-subj', '/CN=' + subject,
                 '-out', name + '.pem', '-keyout', name + '.key', *by,
                 *(word for extension in (
                     'subjectKeyIdentifier=hash', 'authorityKeyIdentifier=keyid', *extensions)
                   for word in ('-addext', extension))],
                cwd=self.folder, check=True, stderr=subprocess.DEVNULL)
        openssl('ca', 'benchmarks', 'basicConstraints=critical,CA:TRUE',
                'keyUsage=critical,keyCertSign')
        openssl('server', '127.0.0.1', 'basicConstraints=critical,CA:FALSE',
                'subjectAltName=IP:127.0.0.1', by=('-CA', 'ca.pem', '-CAkey', 'ca.key'))

    def store(self, bucket, key, size):
        """Put an object of `size` bytes there, return its path."""
        path = self.folder / 'object' / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        block = os.urandom(min(size, 1 << 20))
        with path.open('wb') as file:
            for start in range(0, size, len(block)):
                file.write(block[:size - start])
        return path

    def publish(self, bucket, entries):
        """Write the listing of `bucket`, of (key, size, ETag without quotes) in order."""
        pages = [entries[start:start + PAGE] for start in range(0, len(entries), PAGE)] or [[]]
        folder = self.folder / 'listing' / bucket
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, page in enumerate(pages, 1):
            more = number < len(pages)
            after = 'page-%d' % (number + 1) if more else ''
            (folder / str(number)).write_text(
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                '<Name>%s</Name><Prefix></Prefix><MaxKeys>%d</MaxKeys><Delimiter>/</Delimiter>'
                '<EncodingType>url</EncodingType><KeyCount>%d</KeyCount><IsTruncated>%s'
                '</IsTruncated>%s%s</ListBucketResult>' % (
                    bucket, PAGE, len(page), str(more).lower(),
                    '<NextContinuationToken>%s</NextContinuationToken><NextMarker>%s</NextMarker>'
                    % (after, after) if more else '',
                    ''.join('<Contents><Key>%s</Key><LastModified>2025-01-01T00:00:00.000Z'
                            '</LastModified><ETag>&quot;%s&quot;</ETag><Size>%d</Size>'
                            '<StorageClass>STANDARD</StorageClass></Contents>' % (
                                html.escape(key), etag, size) for key, size, etag in page)))

    def asked(self):
        """Return what was asked since the last call, an Asked each."""
        # The one worker writes its log before it answers the next request: this one ends it.
        with urllib.request.urlopen(urllib.request.Request(
                self.near + '/marker', method='HEAD')):
            pass
        self.log = self.log or (self.folder / 'asked.log').open()
        text, asked = '', []
        while not text.endswith(' /marker\n'):  # a line may be seen before it is whole
            text += self.log.read()
        for line in text.splitlines()[:-1]:
            method, _, connection, uri = line.split()
            path, _, query = uri.partition('?')
            listed = method == 'GET' and '/' not in path[1:].rstrip('/')
            asked.append(Asked('LIST' if listed else method, connection))
        return asked


def free_ports(number):
    """Return ports of this machine that nobody listens on."""
    listeners = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports

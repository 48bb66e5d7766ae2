"""The contenders and the work of the benchmarks; as a program, one contender's measurement.

Each contender does what its documentation shows, with its defaults but for what all of them get:
the endpoint, keys in the configuration, path style, Signature Version 4, no look for a free name
before a save. What is special stands next to it. None of them is told anything about the server.

A measurement is a process of its own, in the contender's environment, on top of a loaded Django:

    python contenders.py '{"contender": ..., "work": ..., ...}'

It says ``ready`` on stdout, waits for a line on stdin, works, and prints its figures as JSON.
"""

import collections
import gc
import json
import os
import sys
import threading
import time

BUCKET, SMALL, LARGE = 'bench', 'small.bin', 'large.bin'
KIB = b'\xa5' * 1024  #: what is saved as a small object
PIECE = 64 * 1024     #: bytes a read of a large object

ACCESS_KEY, SECRET_KEY, REGION = 'BENCHMARK0ACCESSKEY0', 'benchmark-secret-key', 'us-east-1'
DJANGO = 'Django==5.2.19'


class Storage:
    """A storage of Django's as a project uses it; `storage` and `unsigned` are a contender's."""

    def exists(self, name):
        return self.storage.exists(name)

    def save(self, name, content):
        from django.core.files.base import ContentFile
        self.storage.save(name, ContentFile(content))

    def save_file(self, name, file):
        from django.core.files.base import File
        self.storage.save(name, File(file))

    def read(self, name):
        with self.storage.open(name) as file:
            return file.read()

    def pieces(self, name, size):
        with self.storage.open(name) as file:
            while True:
                piece = file.read(size)
                if not piece:
                    return
                yield piece

    def read_range(self, name, start, length):
        with self.storage.open(name) as file:
            if start:
                file.seek(start)
            return file.read(length)

    def listdir(self):
        return self.storage.listdir('')[1]

    def signed_url(self, name):
        return self.storage.url(name)

    def unsigned_url(self, name):
        return self.unsigned.url(name)  # a second storage, made beside the first


class Minis3storage(Storage):
    static = 'minis3storage.S3StaticStorage'

    def __init__(self, endpoint, bucket):
        from minis3storage import S3Storage
        options = self.options(endpoint, bucket)
        self.storage = S3Storage(file_overwrite=True, **options)
        self.unsigned = S3Storage(querystring_auth=False, **options)

    @staticmethod
    def options(endpoint, bucket):
        return {'bucket_name': bucket, 'access_key': ACCESS_KEY, 'secret_key': SECRET_KEY,
                'region_name': REGION, 'endpoint_url': endpoint, 'addressing_style': 'path'}


class DjangoStorages(Storage):
    static = 'storages.backends.s3.S3StaticStorage'

    def __init__(self, endpoint, bucket):
        from storages.backends.s3 import S3Storage
        options = self.options(endpoint, bucket)
        self.storage = S3Storage(**options)  # it overwrites by default
        self.unsigned = S3Storage(querystring_auth=False, **options)

    @staticmethod
    def options(endpoint, bucket):  # its names are ours
        return dict(Minis3storage.options(endpoint, bucket), signature_version='s3v4')


class DjangoS3Storage(Storage):

    def __init__(self, endpoint, bucket):
        from django_s3_storage.storage import S3Storage
        options = {'aws_s3_bucket_name': bucket, 'aws_access_key_id': ACCESS_KEY,
                   'aws_secret_access_key': SECRET_KEY, 'aws_region': REGION,
                   'aws_s3_endpoint_url': endpoint, 'aws_s3_addressing_style': 'path',
                   'aws_s3_file_overwrite': True}
        self.storage = S3Storage(**options)
        self.unsigned = S3Storage(aws_s3_bucket_auth=False, **options)


class DjangoMinioStorage(Storage):

    def __init__(self, endpoint, bucket):
        from minio import Minio
        from minio_storage.storage import MinioStorage

        class Overwriting(MinioStorage):  # it has no option for that
            def get_available_name(self, name, max_length=None):
                return name

        scheme, _, host = endpoint.partition('://')
        # With the region it need not ask for it; it looks once whether the bucket exists.
        client = Minio(host, access_key=ACCESS_KEY, secret_key=SECRET_KEY, region=REGION,
                       secure=scheme == 'https')
        self.storage = Overwriting(client, bucket, presign_urls=True)
        self.unsigned = MinioStorage(client, bucket)


class Obstore:
    """What a native client gets: Rust's object_store, called from Python, without Django."""

    def __init__(self, endpoint, bucket):
        import datetime

        import obstore
        from obstore.store import S3Store
        # The others find the authority to trust in the environment.
        with open(os.environ['SSL_CERT_FILE'], 'rb') as ca:
            trusted = ca.read()
        self.obstore, self.hour = obstore, datetime.timedelta(hours=1)
        self.store = S3Store(
            bucket, endpoint=endpoint, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY,
            region=REGION, virtual_hosted_style_request=False,
            client_options={'allow_http': True, 'root_certificate': trusted})

    def exists(self, name):
        try:
            self.obstore.head(self.store, name)
        except FileNotFoundError:
            return False
        return True

    def save(self, name, content):
        self.obstore.put(self.store, name, content)

    def save_file(self, name, file):
        self.obstore.put(self.store, name, file)  # parts of 5 MiB, up to 12 at once

    def read(self, name):
        return self.obstore.get(self.store, name).bytes()

    def pieces(self, name, size):
        return self.obstore.get(self.store, name).stream(min_chunk_size=size)

    def read_range(self, name, start, length):
        return self.obstore.get_range(self.store, name, start=start, length=length)

    def listdir(self):
        found = self.obstore.list_with_delimiter(self.store)
        return [entry['path'] for entry in found['objects']]

    def signed_url(self, name):
        return self.obstore.sign(self.store, 'GET', name, self.hour)


def without_keep_alive(endpoint, bucket):
    from bare import WithoutKeepAlive
    return WithoutKeepAlive(endpoint, bucket, ACCESS_KEY, SECRET_KEY, REGION)


def limit(endpoint, bucket):
    from bare import Limit
    return Limit(endpoint, bucket, ACCESS_KEY, SECRET_KEY, REGION)


#: `make` takes an endpoint and a bucket; `lacks` is what it cannot do, of Work's `needs`.
Contender = collections.namedtuple('Contender', 'title make requirements lacks')
BOTO = 'boto3==1.44.8'  #: the newest
CONTENDERS = {
    'ours': Contender('minis3storage', Minis3storage, [DJANGO], ''),
    'storages': Contender('django-storages', DjangoStorages,
                          [DJANGO, BOTO, 'django-storages==1.14.6'], ''),
    's3': Contender('django-s3-storage', DjangoS3Storage,
                    [DJANGO, BOTO, 'django-s3-storage==0.15.0'], 'static'),
    'minio': Contender('django-minio-storage', DjangoMinioStorage,
                       [DJANGO, 'minio==7.2.20', 'django-minio-storage==0.6.0'], 'static'),
    'obstore': Contender('obstore', Obstore, [DJANGO, 'obstore==0.12.1'], 'static unsigned_url'),
    'urllib': Contender('urllib, no keep-alive', without_keep_alive, [DJANGO], 'static'),
    'limit': Contender('the limit', limit, [DJANGO], 'static')}


def must(condition):
    """Stop a measurement whose work was not done; an assert would go with -O."""
    if not condition:
        raise SystemExit('that is not what is stored')


# The work, done once: a contender, and what was asked for (see `main`).

def exists(it, _):
    must(it.exists(SMALL) is True)

def save(it, _):
    it.save('saved.bin', KIB)

def read(it, _):
    must(len(it.read(SMALL)) == len(KIB))

def exists_and_read(it, asked):
    exists(it, asked)
    read(it, asked)

def signed_url(it, _):
    must('X-Amz-Signature=' in it.signed_url(SMALL))

def unsigned_url(it, _):
    must(it.unsigned_url(SMALL).endswith('/bench/small.bin'))

def listdir(it, asked):
    must(len(it.listdir()) == asked['keys'])

def save_large(it, asked):
    with open(asked['large'], 'rb') as file:
        it.save_file('saved.bin', file)

def read_large(it, asked):
    must(sum(map(len, it.pieces(LARGE, PIECE))) == asked['size'])

def first_bytes(it, _):
    must(len(it.read_range(LARGE, 0, 100)) == 100)

def middle(it, asked):
    must(len(it.read_range(LARGE, asked['size'] // 2, 1024)) == 1024)

def start(_, asked):
    exists(CONTENDERS[asked['contender']].make(asked['endpoint'], BUCKET), asked)

def collectstatic(*_):
    from django.core.management import call_command
    call_command('collectstatic', interactive=False, verbosity=0)


#: `once` does it once. `shown` is what README shows: CPU's ratio to the limit's, CPU, or wall.
#: `needs` is what not every contender has. `once_only`: it is not done beforehand as well.
Work = collections.namedtuple('Work', 'title once shown needs threads once_only far bucket')
Work.__new__.__defaults__ = 'ratio', '', 1, False, False, BUCKET
WORKS = {
    'exists': Work('exists()', exists),
    'save': Work('save() of 1 KiB', save),
    'read': Work('open().read() of 1 KiB', read),
    'threads': Work('8 threads, exists() and open().read() each', exists_and_read, threads=8),
    'url': Work('url(), signed', signed_url, 'cpu'),
    'unsigned': Work('url(), unsigned', unsigned_url, 'cpu', 'unsigned_url'),
    'listdir': Work('listdir() of {keys:,} keys', listdir, 'cpu', bucket='listed'),
    'save large': Work('save() of {mib} MiB', save_large),
    'save far': Work('save() of {mib} MiB from afar', save_large, 'wall',
                     once_only=True, far=True),
    'read large': Work('read {mib} MiB in pieces of 64 KiB', read_large),
    'first': Work('open {mib} MiB, read 100 bytes', first_bytes),
    'middle': Work('open {mib} MiB, seek to the middle, read 1 KiB', middle),
    'start': Work('import, first exists() of a process', start, 'cpu', once_only=True),
    'collect': Work('collectstatic of {files:,} files from afar: first', collectstatic, 'wall',
                    'static', once_only=True, far=True),
    'collect fresh': Work('collectstatic, a fresh checkout', collectstatic, 'wall',
                          'static', once_only=True, far=True),
    'collect changed': Work('collectstatic, 10 files changed', collectstatic, 'wall',
                            'static', once_only=True, far=True),
}


def memory(name):
    """Return MiB of this process: VmRSS, what it has, or VmHWM, the most it had."""
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def forget_peak():
    """Return MiB of memory; from now on the most this process had is what it has."""
    gc.collect()
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    return memory('VmRSS')


def looper(work, it, asked):
    """Return a function that does the work so many times, in as many threads as it says."""
    def loop(count):
        barrier.wait()
        for _ in range(count // work.threads):
            work.once(it, asked)
    barrier = threading.Barrier(work.threads)
    if work.threads == 1:
        return loop
    from concurrent.futures import ThreadPoolExecutor
    # The same threads each time, as in a server; the barrier gives each its share.
    pool = ThreadPoolExecutor(work.threads)
    return lambda count: list(pool.map(loop, [count] * work.threads))


def main(asked):
    """Say ready, wait, work, return the figures.

    `asked`: contender, work, endpoint; budget, the CPU seconds of what can be repeated; large,
    the path of a file of `size` bytes; keys of the listing; source, a folder for collectstatic.
    """
    import django
    from django.conf import settings
    make, work = CONTENDERS[asked['contender']].make, WORKS[asked['work']]
    work = work._replace(threads=asked.get('threads', work.threads))
    more, chosen = {}, {'default': {'BACKEND': 'django.core.files.storage.FileSystemStorage'}}
    if work.needs == 'static':
        chosen['staticfiles'] = {'BACKEND': make.static, 'OPTIONS': make.options(
            asked['endpoint'], asked['bucket'])}
        more = {'INSTALLED_APPS': ['django.contrib.staticfiles'], 'STATIC_URL': '/static/',
                'STATICFILES_DIRS': [asked['source']]}
    settings.configure(USE_TZ=True, STORAGES=chosen, **more)
    django.setup()
    from django.core.files.storage import FileSystemStorage, storages  # noqa: as a site has them
    it = None
    if work.needs == 'static':
        from django.contrib.staticfiles.management.commands import collectstatic  # noqa
        storages['staticfiles']
    elif work.once is not start:
        it = make(asked['endpoint'], work.bucket)
        it.exists(SMALL)  # now it is imported and connected
    loop, count, had = looper(work, it, asked), work.threads, forget_peak()
    if not work.once_only:
        # Once for what is made at the first use, then to see how often it is to be done.
        pace = 0
        for few in work.threads, work.threads, 10 * work.threads:
            if pace * few <= asked['budget']:
                pace = time.process_time()
                loop(few)
                pace = (time.process_time() - pace) / few
        count = max(1, int(asked['budget'] / pace / work.threads)) * work.threads
    print('ready', flush=True)
    sys.stdin.readline()
    cpu, wall = time.process_time(), time.perf_counter()
    loop(count)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {'count': count, 'cpu': cpu / count, 'wall': wall / count,
            'memory': max(0, memory('VmHWM') - had)}


if __name__ == '__main__':
    print(json.dumps(main(json.loads(sys.argv[1]))))

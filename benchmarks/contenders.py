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
    """A storage of Django's as a project uses it; a contender fills in `self.storage`."""

    unsigned = None  #: one whose url() is not signed

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
        return self.unsigned.url(name)


class Minis3storage(Storage):
    title, requirements = 'minis3storage', [DJANGO]
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
    title, requirements = 'django-storages', [DJANGO, 'django-storages==1.14.6', 'boto3==1.44.8']
    static = 'storages.backends.s3.S3StaticStorage'

    def __init__(self, endpoint, bucket):
        from storages.backends.s3 import S3Storage
        options = self.options(endpoint, bucket)
        self.storage = S3Storage(**options)  # it overwrites by default
        self.unsigned = S3Storage(querystring_auth=False, **options)

    @staticmethod
    def options(endpoint, bucket):
        return {'bucket_name': bucket, 'access_key': ACCESS_KEY, 'secret_key': SECRET_KEY,
                'region_name': REGION, 'endpoint_url': endpoint, 'addressing_style': 'path',
                'signature_version': 's3v4'}


class DjangoS3Storage(Storage):
    title = 'django-s3-storage'
    requirements = [DJANGO, 'django-s3-storage==0.15.0', 'boto3==1.44.8']

    def __init__(self, endpoint, bucket):
        from django_s3_storage.storage import S3Storage
        options = {'aws_s3_bucket_name': bucket, 'aws_access_key_id': ACCESS_KEY,
                   'aws_secret_access_key': SECRET_KEY, 'aws_region': REGION,
                   'aws_s3_endpoint_url': endpoint, 'aws_s3_addressing_style': 'path',
                   'aws_s3_file_overwrite': True}
        self.storage = S3Storage(**options)
        self.unsigned = S3Storage(aws_s3_bucket_auth=False, **options)


class DjangoMinioStorage(Storage):
    title = 'django-minio-storage'
    requirements = [DJANGO, 'django-minio-storage==0.6.0', 'minio==7.2.20']

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

    title, requirements = 'obstore', [DJANGO, 'obstore==0.12.1']
    unsigned_url = None

    def __init__(self, endpoint, bucket):
        import datetime

        import obstore
        from obstore.store import S3Store
        # It knows no file of trusted certificates in the environment: see root_certificate.
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


for bare, title in (without_keep_alive, 'urllib, no keep-alive'), (limit, 'the limit'):
    bare.title, bare.requirements = title, [DJANGO]

CONTENDERS = {
    'limit': limit, 'ours': Minis3storage, 'storages': DjangoStorages, 's3': DjangoS3Storage,
    'minio': DjangoMinioStorage, 'obstore': Obstore, 'urllib': without_keep_alive}


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
    exists(CONTENDERS[asked['contender']](asked['endpoint'], BUCKET), asked)

def collectstatic(*_):
    from django.core.management import call_command
    call_command('collectstatic', interactive=False, verbosity=0)


#: `once` does it once, with what a contender must have, if that is not a matter of course.
#: `shown` is the figure of README's table: a ratio to the limit's CPU, or absolute.
Work = collections.namedtuple('Work', 'title once shown needs threads repeated far bucket')
Work.__new__.__defaults__ = 'ratio', '', 1, False, False, BUCKET
WORKS = {
    'exists': Work('exists()', exists, repeated=True),
    'save': Work('save() of 1 KiB', save, repeated=True),
    'read': Work('open().read() of 1 KiB', read, repeated=True),
    'threads': Work('8 threads, exists() and open().read() each', exists_and_read, threads=8,
                    repeated=True),
    'url': Work('url(), signed', signed_url, 'us', repeated=True),
    'unsigned': Work('url(), unsigned', unsigned_url, 'us', 'unsigned_url', repeated=True),
    'listdir': Work('listdir() of {keys:,} keys', listdir, 'ms', repeated=True, bucket='listed'),
    'save large': Work('save() of {mib} MiB', save_large),
    'save far': Work('the same from afar, https', save_large, 's', far=True),
    'read large': Work('read {mib} MiB in pieces of 64 KiB', read_large),
    'first': Work('open {mib} MiB, read 100 bytes', first_bytes),
    'middle': Work('seek to its middle, read 1 KiB', middle),
    'start': Work('import, first exists() of a process', start, 'ms'),
    'collect': Work('collectstatic of {files:,} files from afar: first', collectstatic, 's',
                    'static', far=True),
    'collect fresh': Work('again, of a fresh checkout', collectstatic, 's', 'static', far=True),
    'collect changed': Work('again, 10 files changed', collectstatic, 's', 'static', far=True),
}


def memory(name):
    """Return MiB of this process: VmRSS, what it has, or VmHWM, the most it had."""
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def repeat(work, it, asked, count):
    """Do the work `count` times, in as many threads as it says."""
    def loop():
        try:
            for _ in range(count // work.threads):
                work.once(it, asked)
        except BaseException as error:
            failures.append(error)
    failures = []
    if work.threads == 1:
        loop()
    else:
        threads = [threading.Thread(target=loop) for _ in range(work.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def main(asked):
    """Print {} if the contender cannot do it; else say ready, wait, work, print the figures.

    `asked`: contender, work, endpoint; budget, the CPU seconds of what is repeated; large, the
    path of a file of `size` bytes; keys of the listing; source, a folder for collectstatic.
    """
    import django
    from django.conf import settings
    contender, work = CONTENDERS[asked['contender']], WORKS[asked['work']]
    work = work._replace(threads=asked.get('threads', work.threads))
    more, chosen = {}, {'default': {'BACKEND': 'django.core.files.storage.FileSystemStorage'}}
    if work.needs == 'static':
        if not hasattr(contender, 'static'):
            return {}
        chosen['staticfiles'] = {'BACKEND': contender.static, 'OPTIONS': contender.options(
            asked['endpoint'], asked['bucket'])}
        more = {'INSTALLED_APPS': ['django.contrib.staticfiles'], 'STATIC_URL': '/static/',
                'STATICFILES_DIRS': [asked['source']]}
    settings.configure(USE_TZ=True, STORAGES=chosen, **more)
    django.setup()
    from django.core.files.storage import FileSystemStorage, storages  # noqa: as a site has them
    it, count = None, 1
    if work.needs == 'static':
        from django.contrib.staticfiles.management.commands import collectstatic  # noqa
        storages['staticfiles']
    elif work.once is not start:
        it = contender(asked['endpoint'], asked.get('bucket', work.bucket))
        if work.needs and getattr(it, work.needs) is None:
            return {}
        work.once(it, asked) if work.repeated else it.exists(SMALL)  # connected, imported
        if work.repeated:
            few = 10 * work.threads if work.once is not listdir else 1
            spent = time.process_time()
            repeat(work, it, asked, few)
            pace = (time.process_time() - spent) / few
            count = max(1, int(asked['budget'] / pace / work.threads)) * work.threads
    print('ready', flush=True)
    sys.stdin.readline()
    gc.collect()
    with open('/proc/self/clear_refs', 'w') as forget:
        forget.write('5')  # the most it had is what it has
    had, cpu, wall = memory('VmRSS'), time.process_time(), time.perf_counter()
    repeat(work, it, asked, count)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {'count': count, 'cpu': cpu / count, 'wall': wall / count,
            'memory': max(0, memory('VmHWM') - had)}


if __name__ == '__main__':
    print(json.dumps(main(json.loads(sys.argv[1]))))

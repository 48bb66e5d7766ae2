"""Requests, seconds and memory of collectstatic, for 1,000 files at some distance from S3.

    python benchmarks/collectstatic.py                         both storages of minis3storage
    python benchmarks/collectstatic.py --python PEER/bin/python storages.backends.s3.S3StaticStorage

The server is the one of the tests, in a process of its own; it waits a round trip before each
answer and checks no signature. The extra `test` must be installed where this runs; the storage
is imported by the Python named. A row is one run of the real command in a process of its own;
wall and CPU seconds are counted from after django.setup(). Nothing is asserted: figures on a
shared machine wander by a fifth.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = ['minis3storage.S3StaticStorage', 'minis3storage.S3ManifestStaticStorage']


def serve(round_trip):
    """Print the place and the keys of an S3, then at each line read what it was asked since."""
    sys.path.insert(0, str(ROOT))
    import test_minis3storage as tests

    def late(server, record, *args, perform=tests.MemoryS3.perform):
        time.sleep(round_trip)
        return perform(server, record, *args)

    tests.MemoryS3.perform, tests.MemoryS3.verify = late, lambda *_: None
    with tests.MemoryS3() as server:
        print(json.dumps({
            'AWS_S3_ENDPOINT_URL': server.endpoint, 'AWS_STORAGE_BUCKET_NAME': server.bucket,
            'AWS_ACCESS_KEY_ID': server.access_key, 'AWS_SECRET_ACCESS_KEY': server.secret_key,
            'AWS_S3_REGION_NAME': server.region}), flush=True)
        for _ in sys.stdin:
            asked = Counter('LIST' if 'list-type' in record.query else record.method
                            for record in server.requests)
            connections = len({record.connection for record in server.requests})
            server.requests.clear()
            print(json.dumps([asked, connections]), flush=True)


def collect(storage, source, place, *arguments):
    """Run the command in this process and print its seconds of wall and CPU and its peak in MB."""
    import resource

    import django
    from django.conf import settings
    from django.core.management import call_command
    chosen = {'STATICFILES_STORAGE': storage} if django.VERSION < (4, 2) else {'STORAGES': {
        'default': {'BACKEND': 'django.core.files.storage.FileSystemStorage'},
        'staticfiles': {'BACKEND': storage}}}
    settings.configure(INSTALLED_APPS=['django.contrib.staticfiles'], STATIC_URL='/static/',
                       STATICFILES_DIRS=[source], USE_TZ=True, AWS_S3_ADDRESSING_STYLE='path',
                       AWS_LOCATION=storage.rpartition('.')[2].lower(),
                       **json.loads(place), **chosen)
    django.setup()
    wall, cpu = time.perf_counter(), time.process_time()
    call_command('collectstatic', *arguments, interactive=False, verbosity=0)
    print(time.perf_counter() - wall, time.process_time() - cpu,
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def write(source):
    """Make 900 images of 0.5 to 6 kB and 100 style sheets that refer to 5 of them each."""
    chance = random.Random(1)
    for number in range(900):
        file = source / 'img' / ('%d.png' % number)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(chance.getrandbits(8) for _ in range(chance.randint(500, 6000))))
    for number in range(100):
        (source / ('%d.css' % number)).write_text('\n'.join(
            '.a%d { background: url("img/%d.png") }' % pair
            for pair in enumerate(chance.sample(range(900), 5))))


def renew(source, changed=0):
    """Give all files a new time, as a checkout does, and `changed` of the images new content."""
    later = time.time() + 3600  # Django looks whether they are newer than what is stored
    for number in range(changed):
        with (source / 'img' / ('%d.png' % number)).open('ab') as file:
            file.write(os.urandom(8))
    for file in source.rglob('*.*'):
        os.utime(str(file), (later, later))


def main():
    """Print a row for each storage and situation."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('storages', nargs='*', default=OURS, metavar='dotted.path')
    parser.add_argument('--python', default=sys.executable)
    parser.add_argument('--round-trip', type=float, default=0.01, metavar='SECONDS')
    asked = parser.parse_args()
    server = subprocess.Popen([sys.executable, __file__, 'serve', str(asked.round_trip)],
                              stdin=-1, stdout=-1, universal_newlines=True)
    place = server.stdout.readline()
    print('%-24s %-15s %-36s %5s %6s %6s %4s' % (
        'storage', 'run', 'requests', 'conn.', 'wall s', 'CPU s', 'MB'))
    for storage in asked.storages:
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder)
            write(source)
            for run, before, arguments in (
                    ('first', lambda: None, ()), ('again', lambda: None, ()),
                    ('fresh checkout', lambda: renew(source), ()),
                    ('10 changed', lambda: renew(source, 10), ()),
                    ('--clear', lambda: None, ('--clear',))):
                before()
                spent = subprocess.check_output(
                    [asked.python, __file__, 'collect', storage, folder, place] + list(arguments),
                    env=dict(os.environ, PYTHONPATH=str(ROOT)), universal_newlines=True).split()
                print('', file=server.stdin, flush=True)
                requests, connections = json.loads(server.stdout.readline())
                print('%-24s %-15s %-36s %5d %6.2f %6.2f %4s' % (
                    storage.rpartition('.')[2], run, ', '.join(
                        '%s %d' % pair for pair in sorted(requests.items())), connections,
                    float(spent[0]), float(spent[1]), spent[2]), flush=True)
    server.stdin.close()
    server.wait()


if __name__ == '__main__':
    if sys.argv[1:2] == ['serve']:
        serve(float(sys.argv[2]))
    elif sys.argv[1:2] == ['collect']:
        collect(*sys.argv[2:])
    else:
        main()

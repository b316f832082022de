// The text of a PDF, page by page. pdf.js, a part of its own, reads it in a worker, which may fetch, load and
// evaluate nothing. Pictures of text are not read.

const PDF_BYTES = 64 * 1024 * 1024;
const PDF_PAGES = 1000;
const PDF_CHARS = 1024 * 1024; // as a text file may have
const PDF_WAIT_MS = 30000; // for one page
const PDF_TROUBLES = { // by the name that pdf.js gives to what is wrong
  PasswordException: "is encrypted: open it with its password, save a copy without one (printing it to a PDF makes one), and attach that.",
  TimeoutError: `takes more than ${span(PDF_WAIT_MS / 1000)} for one page: attach its text.`,
  WorkerError: "cannot be read by this browser: attach its text (pdftotext makes it).",
  InvalidPDFException: "is broken, or no PDF: save it anew, or attach its text.",
};

class Unreadable extends Error {} // in words

async function isPdf(file) {
  return file.type === "application/pdf" || /\.pdf$/i.test(file.name) || (await file.slice(0, 5).text()) === "%PDF-";
}

function namedError(name) {
  return Object.assign(new Error(name), { name });
}

function pageText({ items }) {
  return items.map((item) => (item.str || "") + (item.hasEOL ? "\n" : "")).join("").replaceAll("\0", "").trim();
}

class Pdf { // one that is read, with a worker of its own
  constructor(bytes, signal) {
    this.port = new Worker(partAddress("pdf.worker.js"), { type: "module" });
    this.ended = new Promise((resolve, reject) => {
      this.port.addEventListener("error", () => reject(namedError("WorkerError")));
      signal.addEventListener("abort", () => reject(signal.reason));
    });
    this.ended.catch(() => {}); // whoever waits hears of it
    this.worker = pdfjsLib.PDFWorker.create({ port: this.port, verbosity: 0 });
    const noted = this;
    this.asked = pdfjsLib.getDocument({
      data: bytes, worker: this.worker, verbosity: 0, isEvalSupported: false, useWasm: false, useWorkerFetch: false,
      useSystemFonts: true, disableFontFace: true, enableXfa: false, disableWorkerRendering: true,
      BinaryDataFactory: class { // tables and fonts of its own, which are not here
        async fetch({ kind }) {
          noted.lacksTables ||= kind === "cMapUrl";
          throw new Error("none");
        }
      },
    });
  }

  async within(work) { // what it gives, unless the worker ends or it takes too long
    let timer;
    const late = new Promise((resolve, reject) => {
      timer = setTimeout(() => reject(namedError("TimeoutError")), PDF_WAIT_MS);
    });
    try {
      return await Promise.race([work, this.ended, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async page(number) {
    const page = await this.file.getPage(number);
    const text = pageText(await page.getTextContent());
    page.cleanup();
    return text;
  }

  async texts(name, told) { // of its pages
    this.file = await this.within(this.asked.promise);
    const count = this.file.numPages, texts = [];
    if (count > PDF_PAGES) throw new Unreadable(`${name} has ${digits(count)} pages; a PDF may have ${digits(PDF_PAGES)}: attach those that matter.`);
    let chars = 0;
    for (let number = 1; number <= count; number += 1) {
      told(number, count);
      texts.push(await this.within(this.page(number)));
      chars += texts.at(-1).length;
      if (chars > PDF_CHARS) throw new Unreadable(`${name} has more than ${digits(PDF_CHARS)} characters of text before its page ${digits(number)} of ${digits(count)} ends: attach the pages that matter.`);
    }
    return texts;
  }

  end() {
    this.worker.destroy();
    this.port.terminate();
  }
}

// {name, text, note}, or throws what is wrong with it, in words. told: called with each page and their number.
async function readPdf(file, told, signal) {
  const name = file.name;
  if (file.size > PDF_BYTES) throw new Unreadable(`${name} has ${memory(file.size)}; a PDF may have ${memory(PDF_BYTES)}.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  await partOf("pdf.js", "module");
  signal.throwIfAborted();
  const pdf = new Pdf(bytes, signal);
  try {
    const texts = await pdf.texts(name, told);
    if (!texts.length) throw namedError("InvalidPDFException");
    const silent = texts.filter((text) => !text).length;
    if (silent === texts.length) {
      throw new Unreadable(pdf.lacksTables
        ? `${name} has text in a Chinese, Japanese or Korean font that says nothing of its letters: attach its text (pdftotext makes it).`
        : `${name} has no text, only pictures, as a scan has: let a program recognise its text (ocrmypdf does), or attach its text.`);
    }
    const note = `${many(texts.length, "page")}${silent ? `, ${digits(silent)} without text` : ""}${pdf.lacksTables ? ", without the letters of some fonts" : ""}`;
    return { name, note, text: texts.map((text, n) => `[Page ${n + 1} of ${texts.length}]\n${text || "(no text)"}`).join("\n\n") };
  } catch (error) {
    if (error instanceof Unreadable || signal.aborted) throw error;
    throw new Unreadable(`${name} ${PDF_TROUBLES[error.name] || PDF_TROUBLES.InvalidPDFException}`);
  } finally {
    pdf.end();
  }
}

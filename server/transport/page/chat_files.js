// Files beside a message: text and PDFs. They are read here and sent as text.

const FILES_MOST = 8;
const FILE_BYTES = 1024 * 1024; // of one with text; the server has limits of its own
const PASTE_CHARS = 50000; // more is attached as a file: a field with megabytes of text stops a browser for minutes
let attached = []; // {name, text, note}
const reading = new Set(); // what is shown of each PDF that is read; until then nothing is sent

async function readFile(file) { // throws what is wrong with it, in words; nothing if its reader was stopped
  const name = file.name;
  if (file.type.startsWith("image/")) throw new Error(`${name} is an image, and the model is given text alone.`);
  if (await isPdf(file)) return readShown(file);
  if (file.size > FILE_BYTES) throw new Error(`${name} has ${memory(file.size)}; a file may have ${memory(FILE_BYTES)}.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return { name, text };
  } catch {
    // As one with zeros in it.
  }
  throw new Error(`${name} is no text in UTF-8.`);
}

async function readShown(file) { // a PDF, with how far it is
  const stop = new AbortController(), item = make("li", "reading"), words = make("small", "", `Reading ${file.name}`);
  const bar = make("progress"), button = make("button", "small", "Cancel");
  bar.setAttribute("aria-label", `Read of ${file.name}`);
  bar.value = 0;
  button.type = "button";
  button.setAttribute("aria-label", `Cancel reading ${file.name}`);
  button.addEventListener("click", () => {
    stop.abort();
    byId("prompt").focus();
  });
  item.append(words, button, bar);
  reading.add(item);
  put(byId("files-told"), `Reading ${file.name}.`);
  showAttached();
  try {
    return await readPdf(file, (page, pages) => {
      put(words, `Reading ${file.name}: page ${digits(page)} of ${digits(pages)}`);
      bar.value = (page - 1) / pages;
    }, stop.signal);
  } catch (error) {
    if (stop.signal.aborted) return null;
    throw error;
  } finally {
    reading.delete(item);
    put(byId("files-told"), "");
    showAttached();
  }
}

async function attach(files) {
  const troubles = [];
  tellOfFiles(troubles);
  for (const file of files) {
    try {
      const read = await readFile(file);
      if (!read) continue;
      if (attached.length >= FILES_MOST) throw new Error(`${file.name} is one too many: a message has ${FILES_MOST} files at most.`);
      attached.push(read);
    } catch (error) {
      troubles.push(error.message);
    }
    tellOfFiles(troubles);
    showAttached();
  }
}

function tellOfFiles(troubles) {
  put(byId("files-trouble"), troubles.join(" "));
  byId("files-trouble").hidden = !troubles.length;
}

function showAttached() {
  byId("files").replaceChildren(...attached.map((file) => {
    const item = make("li"), button = make("button", "small", `Remove ${file.name}${file.note ? ` (${file.note})` : ""}`);
    button.type = "button";
    button.addEventListener("click", () => {
      attached = attached.filter((other) => other !== file);
      showAttached();
      byId("prompt").focus();
    });
    item.append(button);
    return item;
  }), ...reading);
  showSend();
}

byId("attach").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async () => {
  await attach([...byId("file").files]);
  byId("file").value = "";
});
for (const kind of ["dragover", "drop"]) {
  byId("chat").addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (kind === "drop") attach([...event.dataTransfer.files]);
  });
}
byId("prompt").addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files || [])], text = event.clipboardData?.getData("text/plain") || "";
  if (!files.length && text.length > PASTE_CHARS) files.push(new File([text], "pasted.txt", { type: "text/plain" }));
  if (!files.length) return;
  event.preventDefault();
  attach(files);
});

// Text files beside a message. They are read here and sent as text.

const FILES_MOST = 8;
const FILE_BYTES = 1024 * 1024; // of one; the server has limits of its own
const PASTE_CHARS = 50000; // more is attached as a file: a field with megabytes of text stops a browser for minutes
let attached = []; // {name, text}

async function readFile(file) { // throws what is wrong with it, in words
  const name = file.name;
  if (file.type.startsWith("image/")) throw new Error(`${name} is an image, and the model is given text alone.`);
  if (file.type === "application/pdf" || /\.pdf$/i.test(name)) {
    throw new Error(`${name} is a PDF, which this server does not read: attach its text (pdftotext makes it).`);
  }
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

async function attach(files) {
  const troubles = [];
  for (const file of files) {
    try {
      const read = await readFile(file);
      if (attached.length >= FILES_MOST) throw new Error(`${file.name} is one too many: a message has ${FILES_MOST} files at most.`);
      attached.push(read);
    } catch (error) {
      troubles.push(error.message);
    }
  }
  put(byId("files-trouble"), troubles.join(" "));
  byId("files-trouble").hidden = !troubles.length;
  showAttached();
}

function showAttached() {
  byId("files").replaceChildren(...attached.map((file) => {
    const item = make("li"), button = make("button", "small", `Remove ${file.name}`);
    button.type = "button";
    button.addEventListener("click", () => {
      attached = attached.filter((other) => other !== file);
      showAttached();
      byId("prompt").focus();
    });
    item.append(button);
    return item;
  }));
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

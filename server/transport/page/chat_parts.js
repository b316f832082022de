// The large parts, which few conversations need: they come from this server when they are asked for. The
// page knows their hashes, and its policy lets nothing else run in their place.

const PARTS = JSON.parse(byId("parts").content.textContent || "{}"); // hash by name
const PART_AGAIN_MS = 10000; // after one that did not come
const partsAsked = new Map(); // promises by name
let partsLost = 0; // which did not come: some browsers never ask again for a module of the same address

// The one way by which a text becomes a script's address, where the browser asks for one.
const partPolicy = {
  createScriptURL(name) {
    if (!Object.hasOwn(PARTS, name)) throw new TypeError(`no part ${name}`);
    return `${ROOT}page/${name}${partsLost ? `?${partsLost}` : ""}`;
  },
};
const partAddresses = window.trustedTypes?.createPolicy("parts", partPolicy) ?? partPolicy;
const partAddress = (name) => partAddresses.createScriptURL(name);

function partOf(name, type = "") { // resolves once it has run
  if (!partsAsked.has(name)) {
    partsAsked.set(name, new Promise((resolve, reject) => {
      const script = make("script");
      script.type = type;
      script.integrity = PARTS[name];
      script.onload = () => resolve();
      script.onerror = () => {
        script.remove();
        partsLost += 1;
        setTimeout(() => partsAsked.delete(name), PART_AGAIN_MS);
        reject(new Error("The server did not send what reads it: is it there? If it was updated, reload this page."));
      };
      script.src = partAddress(name);
      document.head.append(script);
    }));
  }
  return partsAsked.get(name);
}

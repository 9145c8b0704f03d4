// Keeps the form's draft, and the key that a user entered, for this browser tab: sessionStorage
// survives a reload and ends with the tab.

const place = (session) => `darkroom:draft:${session}`;
const KEY = "darkroom:key";

function read(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null;
  }
}

function write(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  } catch { /* storage is full or forbidden: the page works without it */ }
}

let now = null;
// Twice would draw the page once more, with the fields as they were before the draft.
let asked = null;

// What is typed but not sent yet stands in the fields alone.
function save() {
  if (!now?.draft) return;
  const typed = {};
  for (const key of now.typed) {
    const field = document.querySelector(`.st-key-${key} :is(textarea, input)`);
    if (field) typed[key] = field.value;
  }
  write(place(now.session), { ...now.draft, typed });
}

let waiting = 0;
function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(save, 300);
}

export default function ({ data, setStateValue }) {
  if (now === null) {
    document.addEventListener("input", soon);
    addEventListener("pagehide", save);
  }
  now = data;
  if (data.forget)
    for (const name of Object.keys(sessionStorage)) if (name.startsWith("darkroom:")) write(name, null);
  if (data.key && !data.forget) write(KEY, data.key);
  if (data.known === data.session) {
    asked = null;
    soon();
  } else if (asked !== data.session) {
    asked = data.session;
    setStateValue("stored", {
      session: data.session, draft: read(place(data.session)), key: data.forget ? null : read(KEY),
    });
  }
}

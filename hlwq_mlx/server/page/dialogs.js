// The dialogs of index.html: each resolves to what was entered, or to null.

const find = (id) => document.getElementById(id);
const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

/** Make the buttons of the dialogs work; call once. */
export function prepareDialogs() {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const key of document.querySelectorAll("[data-command]")) if (isMac) key.textContent = "⌘";
}

function ask(dialog, check) {
  return new Promise((resolve) => {
    let answer = null;
    const form = dialog.querySelector("form");
    form.onsubmit = (event) => {
      answer = check();
      if (answer === null) event.preventDefault();
    };
    dialog.onclose = () => resolve(answer);
    dialog.showModal();
  });
}

export const showShortcuts = () => ask(find("shortcuts"), () => true);

/** Ask for the API key. */
export async function askKey() {
  const field = find("key-field");
  field.value = "";
  return ask(find("key"), () => field.value.trim() || null);
}

/** Ask for {system, temperature, tools}, shown as they are now. */
export function askSettings({ system, temperature, tools }) {
  find("system").value = system;
  find("temperature").value = temperature;
  find("tools").value = tools.length ? JSON.stringify(tools, null, 2) : "";
  find("tools-fault").textContent = "";
  return ask(find("settings"), readSettings);
}

function readSettings() {
  const tools = readTools(find("tools").value);
  find("tools-fault").textContent = tools ? "" : "This is no list in JSON.";
  return (
    tools && { system: find("system").value.trim(), temperature: find("temperature").value, tools }
  );
}

function readTools(text) {
  try {
    const tools = JSON.parse(text.trim() || "[]");
    return Array.isArray(tools) ? tools : null;
  } catch {
    return null;
  }
}

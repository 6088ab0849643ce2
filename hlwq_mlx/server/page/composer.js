// The field for the next message, and the files that go with it.

import { element, iconButton } from "./elements.js";
import { MediaError, readPart, showPart } from "./media.js";

// The keyboard on a screen has no Shift+Enter: its Enter is a new line.
const TOUCH = matchMedia("(pointer: coarse)");
const find = (id) => document.getElementById(id);

export class Composer {
  /** `actions` has send(text, media), empty() when a key asks for the last message, capabilities, say. */
  constructor(actions) {
    this.actions = actions;
    this.field = find("field");
    this.media = [];
    this.field.addEventListener("input", () => this.grow());
    this.field.addEventListener("keydown", (event) => this.readKey(event));
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    find("attach").addEventListener("click", () => find("files").click());
    find("files").addEventListener("change", async ({ target }) => {
      await this.attach(target.files);
      target.value = "";
    });
    this.field.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.attach(event.clipboardData.files);
    });
    this.takeDrops();
  }

  readKey(event) {
    // 229: Safari ends the composition of a character before the Enter that chose it.
    const isComposing = event.isComposing || event.keyCode === 229;
    const isPlain = !(event.shiftKey || event.ctrlKey || event.metaKey || event.altKey);
    if (!isPlain || isComposing) return;
    if (event.key === "Enter" && !TOUCH.matches) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && this.isEmpty) {
      event.preventDefault();
      this.actions.empty();
    }
  }

  get isEmpty() {
    return this.field.value === "" && this.media.length === 0;
  }

  send() {
    const text = this.field.value.trim();
    if (text || this.media.length) this.actions.send(text, this.media);
  }

  /** Show a text and media to be changed and sent. */
  fill(text, media) {
    this.field.value = text;
    this.media = [...media];
    this.showMedia();
    this.grow();
  }

  grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  async attach(files) {
    for (const file of [...files]) {
      try {
        this.media.push(await readPart(file, this.actions.capabilities()));
      } catch (error) {
        if (!(error instanceof MediaError)) throw error;
        this.actions.say(error.message);
      }
    }
    this.showMedia();
    this.field.focus();
  }

  showMedia() {
    const rows = this.media.map((part, place) => {
      const remove = iconButton("close", `Remove ${part.name ?? "the file"}`, () => {
        this.media.splice(place, 1);
        this.showMedia();
        this.field.focus();
      });
      return element("li", {}, showPart(part), remove);
    });
    find("attachments").replaceChildren(...rows);
  }

  takeDrops() {
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
    addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      mark(true);
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) mark(false);
    });
    addEventListener("drop", (event) => {
      mark(false);
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.attach(event.dataTransfer.files);
    });
  }
}

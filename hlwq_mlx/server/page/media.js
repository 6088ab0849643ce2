// Files that were dropped, pasted or picked, as the content parts of OpenAI's dialect.

import { element, icon } from "./elements.js";

const MOST_BYTES = 100_000_000;
// The browser knows no type for some files that the server reads.
const ENDINGS = {
  image: ["heic", "heif", "avif", "tif", "tiff", "jp2", "bmp", "webp"],
  audio: ["wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "aiff", "aif"],
  video: ["mp4", "mov", "mkv", "webm", "avi", "m4v"],
};
const NEEDS = { image: "vision", audio: "audio", video: "vision" };
const PARTS = {
  image: (url, name) => ({ type: "image_url", image_url: { url }, name }),
  audio: (url, name) => ({
    type: "input_audio",
    input_audio: { data: url.slice(url.indexOf(",") + 1), format: ending(name) || "wav" },
    name,
  }),
  video: (url, name) => ({ type: "video_url", video_url: { url }, name }),
};

/** Raised for a file that cannot be part of a message. */
export class MediaError extends Error {}

const ending = (name) => (name.includes(".") ? name.split(".").at(-1).toLowerCase() : "");

function kindOf(file) {
  const [stated] = file.type.split("/");
  if (stated in PARTS) return stated;
  return Object.keys(ENDINGS).find((kind) => ENDINGS[kind].includes(ending(file.name)));
}

/** Return the part for a file. `capabilities` is what the model has, undefined if that is unknown. */
export async function readPart(file, capabilities) {
  const kind = kindOf(file);
  if (!kind) throw new MediaError(`${file.name} is no picture, sound or video.`);
  if (capabilities && !capabilities.includes(NEEDS[kind])) {
    throw new MediaError(`This model takes no ${kind}: ${file.name} was left out.`);
  }
  if (file.size > MOST_BYTES)
    throw new MediaError(`${file.name} is larger than ${MOST_BYTES / 1e6} MB.`);
  return PARTS[kind](await readUrl(file), file.name);
}

function readUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new MediaError(`${file.name} could not be read.`));
    reader.readAsDataURL(file);
  });
}

const VIEWS = {
  image_url: ({ image_url: { url }, name }) =>
    element("img", { src: own(url), alt: name ?? "Picture" }),
  input_audio: ({ input_audio: { data, format }, name }) =>
    element("audio", {
      controls: true,
      src: `data:audio/${format};base64,${data}`,
      "aria-label": name ?? "Sound",
    }),
  video_url: ({ video_url: { url }, name }) =>
    element("video", { controls: true, src: own(url), "aria-label": name ?? "Video" }),
};

// What is not in the conversation itself is not fetched, as the policy of the page says too.
const own = (url) => (url.startsWith("data:") ? url : null);

/** Return a figure for a part that is not text, its name below. */
export function showPart(part) {
  const view = VIEWS[part.type]?.(part) ?? icon("file");
  return element(
    "figure",
    { class: "medium" },
    view,
    element("figcaption", {}, part.name ?? part.type),
  );
}

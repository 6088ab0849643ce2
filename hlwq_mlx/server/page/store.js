// Conversations in the browser's IndexedDB: what is listed, and each message under [id, place].

const NAME = "hlwq";
const LISTED = "conversations";
const MESSAGES = "messages";

/** Raised when the browser keeps nothing more, or nothing at all. */
export class StoreError extends Error {}

const FULL =
  "The browser's storage is full: what is new is not kept. Delete conversations, or export this one.";
const NONE = "The browser keeps nothing for this page: conversations are gone when it is closed.";

let opened;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore(LISTED, { keyPath: "id" });
      asked.result.createObjectStore(MESSAGES);
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opened;
}

/** Run `work` on both stores in one transaction; return what its request found, once it is kept. */
async function transact(mode, work) {
  const database = await open().catch(() => {
    throw new StoreError(NONE);
  });
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction([LISTED, MESSAGES], mode);
      transaction.onabort = () => reject(transaction.error);
      const asked = work(transaction.objectStore(LISTED), transaction.objectStore(MESSAGES));
      transaction.oncomplete = () => resolve(asked?.result);
    });
  } catch (error) {
    throw new StoreError(
      error?.name === "QuotaExceededError" ? FULL : `Not kept: ${error?.message}`,
    );
  }
}

const from = (id, place) => IDBKeyRange.bound([id, place], [id, Infinity]);
const titleOf = ({ messages, ...listed }) => listed;

/** Return {id, title, updated, system, tools} of every conversation, the latest first. */
export async function list() {
  const found = await transact("readonly", (listed) => listed.getAll());
  return found.sort((one, other) => other.updated - one.updated);
}

export async function load(id) {
  const listed = await transact("readonly", (conversations) => conversations.get(id));
  if (!listed) return null;
  const messages = await transact("readonly", (_, stored) => stored.getAll(from(id, 0)));
  return { ...listed, messages };
}

/** Keep a conversation's title and settings, and its messages from a place on. */
export function save(conversation, place = 0) {
  return transact("readwrite", (listed, stored) => {
    listed.put(titleOf(conversation));
    stored.delete(from(conversation.id, place));
    conversation.messages
      .slice(place)
      .forEach((message, at) => stored.put(message, [conversation.id, place + at]));
  });
}

export function remove(id) {
  return transact("readwrite", (listed, stored) => {
    listed.delete(id);
    stored.delete(from(id, 0));
  });
}

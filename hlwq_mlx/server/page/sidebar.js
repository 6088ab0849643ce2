// The list of conversations.

import { element, iconButton } from "./elements.js";
import { titleOf } from "./conversation.js";

/** Show a list. `actions` has open, rename and remove, each of which gets a conversation. */
export function showList(place, conversations, currentId, actions) {
  place.replaceChildren(...conversations.map((each) => row(each, each.id === currentId, actions)));
}

function row(conversation, isCurrent, actions) {
  const title = titleOf({ messages: [], ...conversation });
  const open = element(
    "button",
    {
      type: "button",
      class: "title",
      "aria-current": isCurrent ? "true" : null,
      click: () => actions.open(conversation),
    },
    title,
  );
  const item = element("li", { class: isCurrent ? "current" : null }, open);
  const rename = iconButton("edit", `Rename ${title}`, () =>
    edit(item, title, (name) => actions.rename(conversation, name)),
  );
  item.append(
    rename,
    iconButton("delete", `Delete ${title}`, () => actions.remove(conversation)),
  );
  return item;
}

function edit(item, title, keep) {
  const field = element("input", { "aria-label": `New name for ${title}`, maxlength: "60" });
  let isDone = false;
  const finish = (name) => {
    if (isDone) return; // removing the field blurs it
    isDone = true;
    keep(name.trim() || title);
  };
  field.value = title;
  field.addEventListener("blur", () => finish(field.value));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(field.value);
    if (event.key !== "Escape") return;
    event.stopPropagation();
    finish(title);
  });
  item.replaceChildren(field);
  field.select();
}

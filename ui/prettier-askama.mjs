// A plugin that lets prettier format askama templates, with markup_fmt. Prettier's own HTML parser does not know
// `{% if … %}`, and the plugins for Jinja on top of it drop spaces that a reader sees: `{{ name }} {% endif %}`.
import { format } from "@wasm-fmt/web_fmt";

export const languages = [{ name: "askama", parsers: ["askama"] }];

export const parsers = {
  askama: {
    parse: (text) => ({ text }),
    astFormat: "askama",
    locStart: () => 0,
    locEnd: (template) => template.text.length,
  },
};

export const printers = {
  askama: {
    print(path, { printWidth, tabWidth }) {
      const layout = { indentStyle: "space", indentWidth: tabWidth, lineWidth: printWidth };
      // "strict": a space between two things is never added and never dropped, only made longer or shorter.
      const markup = { whitespaceSensitivity: "strict", printWidth, doctypeKeywordCase: "lower" };
      return format(path.node.text, "template.jinja", { ...layout, markup });
    },
  },
};

-- A slide with a picture, for LaTeX: its words on the left, the picture on the right, as the page has it by slides.css.
local function is_picture(block)
  return (block.t == "Para" or block.t == "Plain") and #block.content == 1 and block.content[1].t == "Image"
end

local function column(blocks, width) return pandoc.Div(blocks, pandoc.Attr("", { "column" }, { width = width })) end

-- What lies under one heading, in columns where some of it is a picture.
local function arranged(blocks)
  local words, pictures = pandoc.List(), pandoc.List()
  for _, block in ipairs(blocks) do
    if is_picture(block) then
      local image = block.content[1]
      image.src = (image.src:gsub("%.svg$", ".pdf")) -- LaTeX takes no SVG
      image.attributes.width, image.attributes.height = "100%", "78%" -- of the column and of the slide: the smaller counts
      pictures:insert(block)
    else
      words:insert(block)
    end
  end
  if #pictures == 0 then return words end
  if #words == 0 then return pictures end
  return { pandoc.Div({ column(words, "44%"), column(pictures, "54%") }, pandoc.Attr("", { "columns" })) }
end

function Pandoc(document)
  local slides, under = pandoc.List(), pandoc.List()
  for _, block in ipairs(document.blocks) do
    if block.t == "Header" then
      slides:extend(arranged(under))
      slides:insert(block)
      under = pandoc.List()
    else
      under:insert(block)
    end
  end
  slides:extend(arranged(under))
  return pandoc.Pandoc(slides, document.meta)
end
